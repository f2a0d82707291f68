"""The EM loop of one run without Ray: plain classes that run in one process or in Ray's workers."""
