mod check;
mod memory;
mod module;

pub(crate) use check::{check, check_naive, check_verify_page_table};
pub(crate) use memory::Memory;
pub(crate) use module::{Module, compiler_is_missing};
pub(crate) use omniflash_testkit::kernel::{Case, KvForm, QForm};
