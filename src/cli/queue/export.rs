//! `queue export`: messages, activities and files, as files for our user alone.

use super::{Failure, Which, change::bar, meant, other, say, tell};
use crate::activity::Cut;
use crate::mail::Raw;
use crate::queue::{Item, Queue};
use crate::source::said;
use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
    process::ExitCode,
};

pub(super) async fn export(queue: &dyn Queue, which: &Which, to: &Path) -> Result<ExitCode, Failure> {
    let entries = meant(queue, which, None).await?;
    make(to).map_err(|error| {
        other(format!("{}: {}: name a directory that can be made", to.display(), said(&error)))
    })?;
    let bar = bar(entries.len());
    let mut failed = 0;
    for (at, entry) in entries.iter().enumerate() {
        let directory = to.join(entry.key.as_str().replace(':', "-"));
        match queue.open(entry.id).await {
            // Where one cannot be written, the next cannot either.
            Ok(item) => write(&item, &directory).map_err(|error| {
                bar.finish_and_clear();
                let (place, error) = (directory.display(), said(&error));
                other(format!("{place}: {error}: {} of {} are written", at - failed, entries.len()))
            })?,
            Err(error) => {
                failed += 1;
                tell(&format!("{}: {error}", entry.key));
            }
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    say(&format!("{} written to {}\n", entries.len() - failed, to.display()))?;
    Ok(ExitCode::from(u8::from(failed > 0)))
}

fn make(directory: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

fn write(item: &Item, directory: &Path) -> io::Result<()> {
    make(directory)?;
    create(&directory.join("activity.json"))?.write_all(&item.json)?;
    decode(&item.raw, item.raw.whole(), &directory.join("message.eml"))?;
    for (file, cut) in item.activity.files.iter().zip(&item.cuts) {
        // Names are safe as file names; the part before them keeps two of the same name apart.
        decode(&item.raw, *cut, &directory.join(format!("{}-{}", file.part, file.name)))?;
    }
    Ok(())
}

/// A file that others cannot read; one of a former export is as private from now on.
fn create(path: &Path) -> io::Result<fs::File> {
    let file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    Ok(file)
}

fn decode(raw: &Raw, cut: Cut, path: &Path) -> io::Result<()> {
    let mut file = io::BufWriter::new(create(path)?);
    raw.decode(cut, &mut |piece| file.write_all(piece))?;
    file.flush()
}
