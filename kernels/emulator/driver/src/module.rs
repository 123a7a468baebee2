//! Modules and functions.

use std::{
    collections::HashMap,
    ffi::CString,
    sync::{Arc, Mutex, atomic::AtomicU32},
};

use lathe_emulator::{ModuleError, Param};

use crate::{
    codes::{Answer, Code, invalid},
    context::Context,
    report, settings,
    state::{self, Gpu, Object, driver, lock},
};

/// A loaded module.
#[derive(Debug)]
pub struct Module {
    /// The handle of its context.
    pub context: usize,
    /// The module on the emulator.
    pub emulated: lathe_emulator::Module,
    /// Its text, for reports.
    pub ptx: Box<str>,
    /// Its `.version`, times ten.
    pub version: u32,
    functions: Mutex<HashMap<String, usize>>,
    gpu: Arc<Gpu>,
}

/// A kernel of a module.
#[derive(Debug)]
pub struct Function {
    /// Its module.
    pub module: Arc<Module>,
    /// Its name.
    pub name: String,
    /// The same, for C.
    pub c_name: CString,
    /// The most dynamic shared memory that launches may ask for, as the program allowed it.
    pub dynamic_shared: AtomicU32,
}

/// Shared memory that a kernel gets without asking, static and dynamic.
pub const SHARED_BY_DEFAULT: u32 = 48 << 10;

impl Module {
    /// Loads PTX into a context.
    pub fn load(context: &Context, ptx: String) -> Answer<(usize, Arc<Module>)> {
        let gpu = &context.core.gpu;
        let version = check_version(&ptx)?;
        let emulated = lathe_emulator::Module::load(&ptx, &gpu.device).map_err(|error| {
            let code = match error {
                ModuleError::Ptx(_) | ModuleError::Target { .. } => Code::ERROR_INVALID_PTX,
                ModuleError::Memory(_) => Code::ERROR_OUT_OF_MEMORY,
            };
            report::tell(&format!("a module: {error}"));
            code.because(error.to_string())
        })?;
        let (context, ptx, gpu) = (context.handle, ptx.into(), Arc::clone(gpu));
        let module = Arc::new(Module { context, emulated, ptx, version, functions: Mutex::default(), gpu });
        let driver = driver()?;
        let handle = driver.new_handle();
        driver.keep(handle, Object::Module(Arc::clone(&module)));
        Ok((handle, module))
    }

    /// The handle of a kernel, the same each time.
    pub fn function(self: &Arc<Module>, name: &str) -> Answer<usize> {
        if name.is_empty() {
            return invalid("the name is empty");
        }
        if self.emulated.params(name).is_none() {
            return Err(Code::ERROR_NOT_FOUND.because(format!("the module has no kernel `{name}`")));
        }
        let mut functions = lock(&self.functions);
        if let Some(&handle) = functions.get(name) {
            return Ok(handle);
        }
        let driver = driver()?;
        let handle = driver.new_handle();
        let fixed = self.emulated.needs(name).map_or(0, |(shared, ..)| shared as u32);
        let function = Function {
            module: Arc::clone(self),
            name: name.to_owned(),
            c_name: CString::new(name).unwrap_or_default(),
            dynamic_shared: AtomicU32::new(SHARED_BY_DEFAULT.saturating_sub(fixed)),
        };
        driver.keep(handle, Object::Function(Arc::new(function)));
        functions.insert(name.to_owned(), handle);
        Ok(handle)
    }

    /// Forgets the handles of its kernels.
    pub fn forget_functions(&self) -> Answer {
        let driver = driver()?;
        let handles: Vec<usize> = lock(&self.functions).drain().map(|(_, handle)| handle).collect();
        for handle in handles {
            driver.forget(handle);
        }
        Ok(())
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // The variables of a context that was destroyed are freed already.
        let _ = self.emulated.unload(&self.gpu.device);
    }
}

impl Function {
    /// Its parameters.
    pub fn params(&self) -> &[Param] {
        self.module.emulated.params(&self.name).unwrap_or_default()
    }

    /// Static shared memory, local memory of a thread, and the most threads of a CTA.
    pub fn needs(&self) -> (u64, u64, u64) {
        self.module.emulated.needs(&self.name).unwrap_or_default()
    }
}

/// The `.version` of a module, times ten, if the driver takes it.
fn check_version(ptx: &str) -> Answer<u32> {
    let mut lines = ptx.lines().map(|line| line.split("//").next().unwrap_or_default());
    let number = lines.find_map(|line| line.split_once(".version").map(|(_, rest)| rest));
    let version = number.and_then(|text| {
        let (major, minor) = text.split_whitespace().next()?.split_once('.')?;
        Some((major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?))
    });
    // What has no version is not PTX, which the reader says with line and column.
    let Some((major, minor)) = version else { return Ok(0) };
    let cuda = state::settings()?.version;
    let newest = settings::newest_ptx(cuda);
    if (major, minor) > newest {
        let why = format!(
            "the module is PTX {major}.{minor}, and a driver of CUDA {}.{} takes PTX up to {}.{}",
            cuda / 1000,
            cuda % 1000 / 10,
            newest.0,
            newest.1
        );
        report::tell(&why);
        return Err(Code::ERROR_UNSUPPORTED_PTX_VERSION.because(why));
    }
    Ok(10 * major + minor)
}
