//! The toolkit's compiler, a program.

use std::path::PathBuf;
use std::process::Command;

use omniflash_gpu::compiler::compile_by_program;
use omniflash_kernel_store::{CompileError, Compiler, KernelSource};

/// nvcc: on PATH, else in `CUDA_HOME` or `CUDA_PATH`.
#[derive(Debug)]
pub struct Nvcc {
    programs: Vec<PathBuf>,
}

impl Nvcc {
    /// The system's nvcc.
    pub fn of_system() -> Self {
        let in_toolkits = super::toolkits().into_iter().map(|toolkit| toolkit.join("bin").join("nvcc"));
        Nvcc { programs: std::iter::once(PathBuf::from("nvcc")).chain(in_toolkits).collect() }
    }

    /// The first program that runs, with what it says of its version.
    fn present(&self) -> Result<(&PathBuf, String), String> {
        for program in &self.programs {
            match Command::new(program).arg("--version").output() {
                Ok(output) if output.status.success() => {
                    return Ok((program, String::from_utf8_lossy(&output.stdout).into_owned()));
                }
                _ => {}
            }
        }
        let names: Vec<String> = self.programs.iter().map(|program| program.display().to_string()).collect();
        Err(format!("none of {} runs", names.join(", ")))
    }
}

impl Compiler for Nvcc {
    fn name(&self) -> &str {
        "nvcc"
    }

    /// The last line, `Build cuda_13.0.r13.0/compiler.36424714_0`, names the build exactly.
    fn version(&self) -> Result<String, String> {
        let (_, text) = self.present()?;
        Ok(text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default().trim().to_owned())
    }

    fn compile(&self, source: &KernelSource<'_>) -> Result<Vec<u8>, CompileError> {
        let (program, _) = self.present().map_err(CompileError::Unusable)?;
        let mut arguments = vec!["-cubin".to_owned(), format!("-arch={}", source.arch)];
        arguments.extend(source.options.iter().map(|option| (*option).to_owned()));
        compile_by_program(program, &arguments, source, "kernel.cu")
    }
}
