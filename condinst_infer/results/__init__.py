"""The results a user gets: instances, panoptic segmentation, cropped masks, RLE, drawing."""
