"""Turns polygons of COCO, labelme and YOLO into masks."""
