"""An interpreter of PTX that looks for races: `Module(text).launch(kernel, grid, block, args)`."""

from engines.emulator.ptx.launch import LaunchResult, Module
from engines.emulator.ptx.memory import Buffer
from engines.emulator.ptx.parse import Fault
from engines.emulator.ptx.problems import Problem

__all__ = ["Buffer", "Fault", "LaunchResult", "Module", "Problem"]
