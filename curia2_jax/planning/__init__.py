"""What a step costs, before and after it is paid for: FLOPs, estimates, compiled programs, clocks."""
