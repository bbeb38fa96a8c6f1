#![no_main]
mainstay_fuzz::program!("nfs_server");
