VALUE = "helper beside the script"
