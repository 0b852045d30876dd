//! Tensors in host memory for the reference, and in a backend's for the backend.

use omniflash::{Backend, DeviceId, ReferenceBackend, Result, Stream, Tensor, TensorRef};

/// A tensor in host memory and, where that is elsewhere, in a backend's.
pub(super) struct Mirrored {
    host: Tensor,
    device: Option<Tensor>,
}

impl Mirrored {
    pub(super) fn new(backend: &dyn Backend, host: Tensor, stream: &Stream) -> Result<Self> {
        let device = match backend.info().device {
            DeviceId::Cpu => None,
            _ => {
                let bytes = host.to_memory(&ReferenceBackend::new(), &Stream::host())?;
                let layout = host.layout().clone();
                Some(Tensor::from_memory(backend, &bytes, host.dtype(), layout, stream)?)
            }
        };
        Ok(Mirrored { host, device })
    }

    /// Where the backend reads it.
    pub(super) fn device(&self) -> TensorRef<'_> {
        self.device.as_ref().unwrap_or(&self.host).view()
    }

    /// Where the reference reads it.
    pub(super) fn host(&self) -> TensorRef<'_> {
        self.host.view()
    }

    /// For both.
    pub(super) fn both(&self) -> [TensorRef<'_>; 2] {
        [self.device(), self.host()]
    }
}
