"""What Ray's processes of a run are started with. Nothing here loads torch before its process needs it: the
driver, Ray Train's controller and its helpers import these modules, too.
"""
