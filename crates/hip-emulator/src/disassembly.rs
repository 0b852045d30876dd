//! Turns a code object into lines of assembly with `llvm-objdump` and splits each line.
//!
//! LLVM knows every encoding (literals, DPP, SDWA, VOPD, true 16-bit registers), so the text is the decoder.

use std::io::Write as _;
use std::process::Command;

use crate::fault::LoadError;

/// One instruction as the disassembler prints it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    /// Virtual address in the code object.
    pub(crate) address: u64,
    /// Encoded length in bytes.
    pub(crate) bytes: u64,
    pub(crate) text: String,
}

/// Runs the disassembler on an ELF file.
pub(crate) fn disassemble(file: &[u8]) -> Result<Vec<Line>, LoadError> {
    let program = std::env::var(crate::configuration::OBJDUMP).unwrap_or_else(|_| "llvm-objdump-22".into());
    let failure = |reason: String| LoadError::Disassembler { program: program.clone(), reason };
    let mut object = tempfile::Builder::new().suffix(".co").tempfile().map_err(|e| failure(e.to_string()))?;
    object.write_all(file).and_then(|()| object.flush()).map_err(|e| failure(e.to_string()))?;
    let output = Command::new(&program).arg("-d").arg(object.path()).output();
    let output = output.map_err(|e| failure(e.to_string()))?;
    if !output.status.success() {
        return Err(failure(String::from_utf8_lossy(&output.stderr).trim().to_string()));
    }
    Ok(parse(&String::from_utf8_lossy(&output.stdout)))
}

/// The instruction lines of a listing: `\t<text> // <address>: <words> [<label>]`.
pub(crate) fn parse(listing: &str) -> Vec<Line> {
    listing.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<Line> {
    let (text, comment) = line.strip_prefix('\t')?.split_once("//")?;
    let (address, words) = comment.split_once(':')?;
    let address = u64::from_str_radix(address.trim(), 16).ok()?;
    let is_word = |word: &&str| word.len() == 8 && word.bytes().all(|b| b.is_ascii_hexdigit());
    let bytes = 4 * words.split_whitespace().take_while(is_word).count() as u64;
    let text = text.trim().to_string();
    // Padding behind a kernel's last instruction, never executed.
    if text == "s_code_end" { None } else { Some(Line { address, bytes, text }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_line_gives_its_address_length_and_text() {
        let listing = "\nfile.co:\tfile format elf64-amdgpu\n\n0000000000001700 <k>:\n\
            \tv_mul_f32_e32 v2, 0x4f7ffffe, v2                           // 0000000017F0: 0A0404FF 4F7FFFFE\n\
            \ts_cbranch_scc1 65505  // 0000000017F8: BF85FFE1 <k+0x10>\n\ts_code_end // 0000000017FC: BF9F0000\n";
        let lines = parse(listing);
        assert_eq!(lines.len(), 2);
        assert_eq!((lines[0].address, lines[0].bytes), (0x17f0, 8));
        assert_eq!(lines[0].text, "v_mul_f32_e32 v2, 0x4f7ffffe, v2");
        assert_eq!(lines[1].bytes, 4);
    }
}
