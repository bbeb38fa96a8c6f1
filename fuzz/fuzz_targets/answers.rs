#![no_main]
mainstay_fuzz::program!("answers");
