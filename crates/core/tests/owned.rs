//! Tensors that own their memory, on the reference backend.

use omniflash_core::{DType, Error, Layout, ReferenceBackend, Stream, Tensor};

fn host() -> (ReferenceBackend, Stream) {
    (ReferenceBackend::new(), Stream::host())
}

#[test]
fn what_is_copied_in_is_read_back() {
    let (backend, stream) = host();
    let data: Vec<f32> = (0..12).map(|i| i as f32).collect();
    let tensor = Tensor::from_slice(&backend, &data, &[3, 4], &stream).unwrap();
    assert_eq!((tensor.shape(), tensor.dtype()), (&[3, 4][..], DType::F32));
    assert_eq!(tensor.to_vec::<f32>(&backend, &stream).unwrap(), data);
    assert_eq!(tensor.view().host::<f32>().unwrap().at(&[2, 1]), 9.0);
}

#[test]
fn new_tensors_are_zero_and_can_be_written() {
    let (backend, stream) = host();
    let mut tensor = Tensor::zeros(&backend, DType::U32, &[2, 2], &stream).unwrap();
    tensor.view_mut().set(&[1, 0], 7u32).unwrap();
    assert_eq!(tensor.to_vec::<u32>(&backend, &stream).unwrap(), [0, 0, 7, 0]);
    let empty = Tensor::zeros(&backend, DType::F16, &[4, 0, 8], &stream).unwrap();
    assert_eq!(empty.to_vec::<half::f16>(&backend, &stream).unwrap(), []);
}

#[test]
fn gaps_of_a_layout_are_kept() {
    let (backend, stream) = host();
    let bytes: Vec<u8> = (0..24).collect();
    let pitched = Layout::new(&[2, 2], &[4, 1]).unwrap();
    let tensor = Tensor::from_memory(&backend, &bytes, DType::I32, pitched, &stream).unwrap();
    assert_eq!(tensor.view().host::<i32>().unwrap().at(&[1, 1]), i32::from_ne_bytes([20, 21, 22, 23]));
    assert_eq!(tensor.to_memory(&backend, &stream).unwrap(), bytes);
    assert!(matches!(tensor.to_vec::<i32>(&backend, &stream), Err(Error::Shape { .. })));
}

#[test]
fn memory_that_is_too_small_and_types_that_differ_are_refused() {
    let (backend, stream) = host();
    assert!(matches!(
        Tensor::from_slice(&backend, &[1.0f32; 5], &[2, 3], &stream),
        Err(Error::Shape { argument, .. }) if argument == "data"
    ));
    let layout = Layout::contiguous(&[4]).unwrap();
    assert!(Tensor::from_memory(&backend, &[0; 15], DType::F32, layout, &stream).is_err());
    let tensor = Tensor::zeros(&backend, DType::F32, &[4], &stream).unwrap();
    assert!(matches!(tensor.to_vec::<i32>(&backend, &stream), Err(Error::Dtype { .. })));
    assert!(Tensor::zeros(&backend, DType::F32, &[usize::MAX, 2], &stream).is_err());
}
