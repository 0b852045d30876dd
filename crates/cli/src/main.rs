//! The command `omniflash`.
fn main() {}
