"""A generated world of shapes: scenes, their pictures, and captions whose truth a program decides."""
