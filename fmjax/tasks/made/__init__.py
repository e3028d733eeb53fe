"""Tasks that judge the images a model makes. `base` has what they share: settings, samples, protocol cards."""
