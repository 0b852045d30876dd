mod case;
mod memory;
mod module;

pub(crate) use case::{Case, KvForm, QForm, check, check_naive, check_verify_page_table};
pub(crate) use module::{Module, compiler_is_missing};
