#![no_main]
mainstay_fuzz::program!("image_layer");
