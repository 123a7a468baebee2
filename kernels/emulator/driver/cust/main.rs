//! A program that reaches the driver through the `cust` crate: memory, kernels, streams, events and errors.

use std::error::Error;

use cust::{
    device::DeviceAttribute,
    error::CudaError,
    event::{Event, EventFlags, EventStatus},
    launch,
    memory::{AsyncCopyDestination, CopyDestination, DeviceBuffer, LockedBuffer},
    module::Module,
    prelude::{Device, Stream, StreamFlags},
    stream::StreamWaitEventFlags,
};

const PTX: &str = include_str!("../../tests/fixtures/kernels.ptx");

fn main() -> Result<(), Box<dyn Error>> {
    let _context = cust::quick_init()?;
    let device = Device::get_device(0)?;
    assert_eq!(Device::num_devices()?, 1);
    assert_eq!(device.get_attribute(DeviceAttribute::WarpSize)?, 32);
    let capability = [DeviceAttribute::ComputeCapabilityMajor, DeviceAttribute::ComputeCapabilityMinor];
    let [major, minor] = capability.map(|attribute| device.get_attribute(attribute));
    let module = Module::from_ptx(PTX, &[])?;
    let saxpy = module.get_function("saxpy")?;
    assert_eq!(module.get_function("no_such_kernel").err(), Some(CudaError::NotFound));
    assert!(Module::from_ptx("nonsense", &[]).is_err());

    // A kernel between two asynchronous copies, and another stream that waits for it.
    let (first, second) =
        (Stream::new(StreamFlags::NON_BLOCKING, None)?, Stream::new(StreamFlags::NON_BLOCKING, None)?);
    let (begin, middle) = (Event::new(EventFlags::DEFAULT)?, Event::new(EventFlags::DEFAULT)?);
    let gate = Event::new(EventFlags::DISABLE_TIMING)?;
    let x = LockedBuffer::from_slice(&[1.0f32, 2.0, 3.0, 4.0])?;
    let mut found = LockedBuffer::from_slice(&[0.0f32; 4])?;
    let mut dx = DeviceBuffer::from_slice(&[0.0f32; 4])?;
    let dy = DeviceBuffer::from_slice(&[10.0f32; 4])?;
    begin.record(&first)?;
    // SAFETY: the buffers outlive the work, which is waited for below, and the kernel is given their length.
    unsafe {
        dx.async_copy_from(&x, &first)?;
        launch!(saxpy<<<1, 32, 0, first>>>(2.0f32, dx.as_device_ptr(), dy.as_device_ptr(), 4i32))?;
    }
    middle.record(&first)?;
    gate.record(&first)?;
    second.wait_event(gate, StreamWaitEventFlags::DEFAULT)?;
    // SAFETY: as above.
    unsafe { dy.async_copy_to(&mut found, &second)? };
    second.synchronize()?;
    assert_eq!(found.as_slice(), [12.0, 14.0, 16.0, 18.0]);
    assert_eq!(middle.query()?, EventStatus::Ready);
    assert!(middle.elapsed_time_f32(&begin)? >= 0.0);

    // A copy on the device, and one back that the program waits for.
    let mut copy = DeviceBuffer::from_slice(&[0.0f32; 4])?;
    copy.copy_from(&dy)?;
    let mut back = [0.0f32; 4];
    copy.copy_to(&mut back)?;
    assert_eq!(back, [12.0, 14.0, 16.0, 18.0]);

    // What goes wrong on the device stays.
    // SAFETY: address zero is nobody's, which the driver must find.
    unsafe {
        let nowhere = cust::memory::DevicePointer::<f32>::null();
        launch!(saxpy<<<1, 32, 0, first>>>(2.0f32, nowhere, dy.as_device_ptr(), 4i32))?;
    }
    assert_eq!(first.synchronize().err(), Some(CudaError::IllegalAddress));
    assert_eq!(DeviceBuffer::from_slice(&[0u8; 4]).err(), Some(CudaError::IllegalAddress));
    println!("cust works on a device of capability {}.{}", major?, minor?);
    Ok(())
}
