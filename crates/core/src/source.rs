//! Device source of user masks and score modifications.

/// A functor for GPUs: a C++ struct that a run-time compiler reads, and the bytes of its members.
///
/// The struct is plain data with `__device__` member functions and includes no header; what it must offer is
/// documented with the shared device code. Masks and score modifications of users and the built-in ones take the
/// same way into a kernel.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DeviceSource {
    /// The struct's name, as kernel ids show it.
    pub type_name: String,
    /// The struct's definition.
    pub source: String,
    /// The members' bytes as the device lays them out: the bytes of a `#[repr(C)]` struct of 32-bit numbers.
    pub parameters: Vec<u8>,
}

impl DeviceSource {
    /// A functor of type `type_name`, defined by `source`, whose members have the bytes of `parameters`.
    pub fn new<P: bytemuck::NoUninit>(
        type_name: impl Into<String>,
        source: impl Into<String>,
        parameters: &P,
    ) -> Self {
        DeviceSource {
            type_name: type_name.into(),
            source: source.into(),
            parameters: bytemuck::bytes_of(parameters).to_vec(),
        }
    }
}
