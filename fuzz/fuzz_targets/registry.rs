#![no_main]
mainstay_fuzz::program!("registry");
