"""Image-classification networks whose stages other networks build on."""
