"""From a file to arrays: any picture and any mask become one sample."""
