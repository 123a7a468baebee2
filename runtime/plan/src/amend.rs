//! A plan once more, with a program added over the weights that it has.

use std::path::Path;

use crate::error::PlanError;
use crate::format::{CHUNK, SectionKind};
use crate::manifest::Manifest;
use crate::program::Program;
use crate::reader::Plan;
use crate::writer::PlanWriter;

impl Plan {
    /// Writes what this plan holds, another program and another manifest to a file, which may be its own.
    ///
    /// # Errors
    /// When the program does not fit the plan, or a file cannot be read or written.
    pub fn write_with(&self, program: &Program, manifest: &Manifest, path: &Path) -> Result<Plan, PlanError> {
        let mut writer = PlanWriter::new();
        self.features().iter().for_each(|feature| writer.require(feature));
        writer.program(program);
        writer.manifest(manifest);
        for section in self.sections() {
            let labels = [section.name.as_str(), &section.target, &section.layout];
            match section.kind {
                SectionKind::Manifest | SectionKind::ChunkDigests => {}
                SectionKind::Weights => {
                    let owner = self.program(&section.name).ok_or_else(|| PlanError::Missing {
                        what: format!("program `{}`, whose weights it holds", section.name),
                    })?;
                    writer.weights(owner, &section.layout, |index, sink| {
                        let span = &owner.weights[index];
                        let end = section.offset + span.offset + span.bytes;
                        let mut at = section.offset + span.offset;
                        while at < end {
                            let bytes = self.bytes(at, (end - at).min(CHUNK as u64)).map_err(std::io::Error::other)?;
                            sink.write_all(&bytes)?;
                            at += bytes.len() as u64;
                        }
                        Ok(())
                    });
                }
                kind => writer.add(kind, labels, self.bytes(section.offset, section.length)?),
            }
        }
        writer.write(path)
    }
}
