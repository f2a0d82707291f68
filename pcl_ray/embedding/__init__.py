"""An encoder in use: pictures in, embeddings and nearest prototypes out, without MLflow and Ray."""
