"""What the computer gives: devices, several processes, ZeroGPU, files that are written whole, torchvision."""
