"""``aws_braket``: QPUs and simulators of Amazon Braket, and its SDK's simulators in the pod."""
