"""Engine: ``endauda demo``. ``story`` tells it, ``street`` draws the world it happens in."""
