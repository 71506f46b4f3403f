"""WHAT is computed: blocks, rules, latents, feedback, networks, data. Plain PyTorch, no Ray."""
