"""Speed and memory as ratios against plain reference paths."""
