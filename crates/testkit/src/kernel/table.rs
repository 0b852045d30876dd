//! Page tables for the kernel that checks them.

use omniflash_device::parameters::{DeviceAddress, Indices, KeyForm, Table, VerifyParameters};

use super::device::KernelDevice;

/// Fails unless the kernel that `run` runs finds the first bad entry and the first bad length, and nothing else.
///
/// # Panics
/// Then.
pub fn assert_finds_bad_pages<D: KernelDevice>(
    device: impl Fn() -> D,
    run: impl Fn(&mut D, &VerifyParameters),
) {
    let table = [0i32, 4, -1, 9, 2, 1, 3, 0, 0];
    let found = |lengths: [i32; 3], num_blocks: u32| {
        let mut report = [u64::MAX; 2];
        let mut device = device();
        let address = |device: &mut D, bytes: &[u8]| DeviceAddress(device.upload(bytes));
        let parameters = VerifyParameters {
            block_table: Table {
                data: address(&mut device, bytemuck::cast_slice(&table)),
                row_stride: 3,
                column_stride: 1,
            },
            key_lengths: Indices { data: address(&mut device, bytemuck::cast_slice(&lengths)), stride: 1 },
            report: address(&mut device, bytemuck::cast_slice_mut(&mut report)),
            key_form: KeyForm::Paged.into(),
            batch: 3,
            seqlen_k: 24,
            page_size: 8,
            num_blocks,
            reserved: 0,
        };
        run(&mut device, &parameters);
        device.download(bytemuck::cast_slice_mut(&mut report));
        report
    };
    assert_eq!(found([16, 0, 24], 5), [u64::MAX; 2], "entries past a length are not read");
    assert_eq!(found([17, 0, 24], 5), [2, u64::MAX]);
    assert_eq!(found([16, 8, 24], 5), [1 << 32, u64::MAX]);
    assert_eq!(found([16, 25, -1], 5), [u64::MAX, 1]);
}
