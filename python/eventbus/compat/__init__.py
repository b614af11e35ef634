"""Code written for other event systems runs here: one subpackage per system."""
