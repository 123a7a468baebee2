//! Initialization, versions, errors and devices.

use std::ffi::CStr;

use crate::{
    abi::{Out, Text, api},
    attributes,
    codes::{Answer, Code, invalid, unsupported},
    state::{self, driver, gpu, initialize},
};

/// A name, cut to a buffer of the program.
fn put_text(out: Out<u8>, length: i32, text: &str) -> Answer {
    let room = usize::try_from(length).ok().filter(|&room| room > 0);
    let Some(room) = room else { return invalid(format!("a buffer of {length} bytes")) };
    let mut bytes = text.as_bytes()[..text.len().min(room - 1)].to_vec();
    bytes.push(0);
    out.set_all(&bytes)
}

/// A number that tells devices apart, the same in each process.
fn uuid(ordinal: i32) -> Answer<[u8; 16]> {
    let mut bytes = *b"lathe-emulated-0";
    bytes[15] = gpu(ordinal)?.ordinal as u8;
    Ok(bytes)
}

fn put_error(code: u32, out: Out<*const std::ffi::c_char>, text: fn(Code) -> Option<&'static CStr>) -> Answer {
    let found = text(Code(code));
    out.set(found.map_or(std::ptr::null(), CStr::as_ptr))?;
    found.map_or_else(|| invalid(format!("{code} is no result code that the emulated driver gives")), |_| Ok(()))
}

api! {
    fn cuInit(flags: u32) {
        if flags != 0 {
            return invalid(format!("flags {flags}"));
        }
        initialize()
    }
    fn cuDriverGetVersion(version: Out<i32>) { version.set(state::settings()?.version) }
    fn cuGetErrorName(code: u32, name: Out<*const std::ffi::c_char>) { put_error(code, name, Code::name) }
    fn cuGetErrorString(code: u32, text: Out<*const std::ffi::c_char>) { put_error(code, text, Code::text) }

    fn cuDeviceGetCount(count: Out<i32>) { count.set(driver()?.gpus.len() as i32) }
    fn cuDeviceGet(device: Out<i32>, ordinal: i32) {
        gpu(ordinal)?;
        device.set(ordinal)
    }
    fn cuDeviceGetName(name: Out<u8>, length: i32, device: i32) {
        put_text(name, length, &format!("Emulated {}", gpu(device)?.chip().name()))
    }
    fn cuDeviceGetUuid(out: Out<[u8; 16]>, device: i32) { out.set(uuid(device)?) }
    fn cuDeviceGetUuid_v2(out: Out<[u8; 16]>, device: i32) { out.set(uuid(device)?) }
    fn cuDeviceTotalMem_v2(bytes: Out<usize>, device: i32) { bytes.set(gpu(device)?.device.memory.info().1 as usize) }
    fn cuDeviceGetAttribute(value: Out<i32>, attribute: u32, device: i32) {
        let gpu = gpu(device)?;
        value.set(attributes::device(gpu.chip(), gpu.ordinal, attribute)?)
    }
    fn cuDeviceComputeCapability(major: Out<i32>, minor: Out<i32>, device: i32) {
        let capability = gpu(device)?.chip().capability();
        major.set(capability.0 as i32)?;
        minor.set(capability.1 as i32)
    }
    fn cuDeviceGetPCIBusId(name: Out<u8>, length: i32, device: i32) {
        put_text(name, length, &format!("0000:{:02X}:00.0", gpu(device)?.ordinal + 1))
    }
    fn cuDeviceGetByPCIBusId(device: Out<i32>, name: Text) {
        let name = name.get()?;
        let bus = name.split(':').nth(1).and_then(|bus| i32::from_str_radix(bus, 16).ok()).unwrap_or(0);
        gpu(bus - 1)?;
        device.set(bus - 1)
    }
    fn cuDeviceCanAccessPeer(can: Out<i32>, device: i32, peer: i32) {
        gpu(device)?;
        gpu(peer)?;
        can.set(0)
    }
    fn cuDeviceGetP2PAttribute(value: Out<i32>, _attribute: u32, device: i32, peer: i32) {
        gpu(device)?;
        gpu(peer)?;
        value.set(0)
    }
    fn cuDeviceGetTexture1DLinearMaxWidth(_width: Out<usize>, _format: u32, _channels: u32, _device: i32) {
        unsupported("textures")
    }
}
