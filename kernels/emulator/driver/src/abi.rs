//! The C interface: arguments that point into the program's memory, and how an exported function answers.
//!
//! [`Out`], [`In`], [`Text`] and [`Table`] are made by nobody but C callers: they have no constructor, and stand as
//! parameters of exported functions. What NVIDIA's documentation asks of such an argument is what their methods rely on: it
//! is null, or points to as many aligned values as the function is documented to read or write. Null is answered with an
//! error, as is a pointer that is not aligned.

#![expect(unsafe_code, reason = "arguments of a C interface point into the caller's memory")]

use std::{
    cell::Cell,
    ffi::CStr,
    panic::{AssertUnwindSafe, catch_unwind},
};

use crate::{
    codes::{Answer, Code, invalid},
    report, stream,
};

/// Where a function writes a result.
#[repr(transparent)]
#[derive(Clone, Copy, Debug)]
pub struct Out<T>(*mut T);

impl<T: Copy> Out<T> {
    /// Whether the caller passed nothing.
    pub fn is_null(self) -> bool {
        self.0.is_null()
    }

    /// Writes the result.
    pub fn set(self, value: T) -> Answer {
        if self.0.is_null() || !self.0.is_aligned() {
            return invalid("the pointer for a result is null or not aligned");
        }
        // SAFETY: it is neither null nor misaligned, and C callers pass room for one value (module's text).
        unsafe { self.0.write(value) };
        Ok(())
    }

    /// Writes the result, unless the caller does not want it.
    pub fn set_if_wanted(self, value: T) -> Answer {
        if self.0.is_null() { Ok(()) } else { self.set(value) }
    }

    /// Writes results side by side.
    pub fn set_all(self, values: &[T]) -> Answer {
        if self.0.is_null() || !self.0.is_aligned() {
            return invalid("the pointer for results is null or not aligned");
        }
        for (index, &value) in values.iter().enumerate() {
            // SAFETY: as above; where the function writes several values, C callers say for how many they have room, and
            // no more than that are in `values`.
            unsafe { self.0.add(index).write(value) };
        }
        Ok(())
    }

    /// What stands there, where a result is an argument too.
    pub fn get(self) -> Answer<T> {
        if self.0.is_null() || !self.0.is_aligned() {
            return invalid("a pointer argument is null or not aligned");
        }
        // SAFETY: it is neither null nor misaligned, and the function is documented to read the value there.
        Ok(unsafe { self.0.read() })
    }
}

/// Where a function reads a structure or the first of several values.
#[repr(transparent)]
#[derive(Clone, Copy, Debug)]
pub struct In<T>(*const T);

impl<T: Copy> In<T> {
    /// Where it points.
    pub fn address(self) -> usize {
        self.0 as usize
    }

    /// Whether the caller passed nothing.
    pub fn is_null(self) -> bool {
        self.0.is_null()
    }

    /// The value.
    pub fn get(self) -> Answer<T> {
        Ok(self.get_all(1)?[0])
    }

    /// So many values.
    pub fn get_all(self, count: usize) -> Answer<Vec<T>> {
        if count == 0 {
            return Ok(vec![]);
        }
        if self.0.is_null() || !self.0.is_aligned() {
            return invalid("a pointer argument is null or not aligned");
        }
        if count > 1 << 24 {
            return invalid(format!("an array of {count} values"));
        }
        // SAFETY: it is neither null nor misaligned, and C callers pass as many values as they say (module's text).
        Ok((0..count).map(|index| unsafe { self.0.add(index).read() }).collect())
    }
}

/// A string that ends with a zero byte.
#[repr(transparent)]
#[derive(Clone, Copy, Debug)]
pub struct Text(*const std::ffi::c_char);

impl Text {
    /// The bytes before the zero.
    pub fn bytes(self) -> Answer<Vec<u8>> {
        if self.0.is_null() {
            return invalid("a string is null");
        }
        // SAFETY: it is not null, and C callers pass a string that ends with a zero byte (module's text).
        Ok(unsafe { CStr::from_ptr(self.0) }.to_bytes().to_vec())
    }

    /// The string.
    pub fn get(self) -> Answer<String> {
        String::from_utf8(self.bytes()?).or_else(|_| invalid("a string is not UTF-8"))
    }
}

thread_local! {
    /// Which stream 0 means while an exported function runs: the legacy one, or the thread's own in the `_ptsz` variants.
    static DEFAULT_STREAM: Cell<usize> = const { Cell::new(LEGACY) };
}

/// The handle of the legacy default stream.
pub const LEGACY: usize = 1;
/// The handle of the thread's default stream.
pub const PER_THREAD: usize = 2;

/// The handle that 0 stands for in the running call.
pub fn default_stream() -> usize {
    DEFAULT_STREAM.get()
}

/// Runs an exported function, in which stream 0 is the thread's own.
pub fn with_per_thread(call: impl FnOnce() -> u32) -> u32 {
    DEFAULT_STREAM.set(PER_THREAD);
    let answer = call();
    DEFAULT_STREAM.set(LEGACY);
    answer
}

/// Runs the body of an exported function and gives what it returns to C. A panic must not cross the border: it is reported
/// as this library's mistake.
pub fn answer(name: &str, body: impl FnOnce() -> Answer) -> u32 {
    stream::note_caller();
    let refusal = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => return Code::SUCCESS.0,
        Ok(Err(refusal)) => refusal,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic");
            report::tell(&format!("{name}: {text}; this is a bug of the emulated driver"));
            return Code::ERROR_UNKNOWN.0;
        }
    };
    if refusal.code != Code::ERROR_NOT_READY {
        report::note(&format!("{name} gives {}: {}", refusal.code.0, refusal.why));
    }
    refusal.code.0
}

/// Exports functions of the driver API under their own names, and lists them in `SYMBOLS`. A second name is the variant in
/// which stream 0 is the thread's own.
macro_rules! api {
    ($(fn $name:ident $arguments:tt $(/ $variant:ident)? $body:block)*) => {
        $(
            $crate::abi::export! { $name, |body| body(), $arguments $body }
            $($crate::abi::export! { $variant, |body| $crate::abi::with_per_thread(body), $arguments $body })?
        )*

        /// Names and addresses of the functions.
        pub fn symbols() -> Vec<(&'static str, usize)> {
            vec![$(
                (stringify!($name), $name as *const () as usize),
                $((stringify!($variant), $variant as *const () as usize),)?
            )*]
        }
    };
}
pub(crate) use api;

/// Exports one function.
macro_rules! export {
    ($name:ident, |$call:ident| $run:expr, $arguments:tt $body:block) => {
        // SAFETY: the names belong to the driver API, and nothing else in a program that loads this library as its driver
        // defines them. The parameters have the layout of the documented C ones (see `abi`).
        #[expect(unsafe_code, reason = "the name is fixed by the driver API")]
        #[unsafe(no_mangle)]
        pub extern "C" fn $name $arguments -> u32 {
            let $call = || $crate::abi::answer(stringify!($name), || $body);
            $run
        }
    };
}
pub(crate) use export;
