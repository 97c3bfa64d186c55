//! `neuwerk cluster backup`: make a backup on any node, check one, and make a key to seal for.

use std::path::Path;

use api::recovery::BackupRequest;
use cluster::backup::{self, Description, Opener};
use cluster::durable::{self, PRIVATE};
use zeroize::Zeroizing;

use crate::args::{Backup, BackupMake, BackupVerb};
use crate::connect::client;
use crate::failure::{Failure, chain};
use crate::print;
use crate::recovery::time;

pub(crate) async fn perform(backup: Backup) -> Result<(), Failure> {
    match backup.verb {
        Some(BackupVerb::Verify {
            file,
            key_file,
            passphrase_file,
        }) => verify(&file, key_file.as_deref(), passphrase_file.as_deref()),
        Some(BackupVerb::Keygen { output }) => keygen(&output),
        None => make(backup.make).await,
    }
}

async fn make(make: BackupMake) -> Result<(), Failure> {
    let Some(output) = &make.output else {
        return Err(Failure::Usage("backup needs --output FILE".into()));
    };
    let passphrase = make
        .passphrase_file
        .as_deref()
        .map(secret_file)
        .transpose()?;
    let request = BackupRequest {
        recipient: make.recipient,
        passphrase: passphrase.as_deref().map(|text| text.trim().to_owned()),
    };
    let made = client(&make.target)?.backup(&request).await?;
    // What arrived is looked at before it takes the place of an older one.
    let description =
        backup::inspect(&made.file).map_err(|error| Failure::Failed(chain(&error)))?;
    durable::replace(output, &made.file, PRIVATE).map_err(|error| Failure::file(output, &error))?;
    if make.target.json {
        return print::json(&description);
    }
    let mut text = format!("{}\n{}", output.display(), summary(&description));
    if !made.linearizable {
        text.push_str(
            "no leader confirmed that this is all: changes that only other nodes have are not in it\n",
        );
    }
    print::to_stdout(&text)
}

fn verify(file: &Path, key: Option<&Path>, passphrase: Option<&Path>) -> Result<(), Failure> {
    let bytes = std::fs::read(file).map_err(|error| Failure::file(file, &error))?;
    let wrong = |error: backup::BackupError| {
        Failure::Failed(format!("{}: {}", file.display(), chain(&error)))
    };
    if key.is_none() && passphrase.is_none() {
        let description = backup::inspect(&bytes).map_err(wrong)?;
        return print::to_stdout(&format!(
            "{}whole; give --key-file or --passphrase-file to check that it can be opened\n",
            summary(&description)
        ));
    }
    let opened = backup::open(&bytes, &opener(key, passphrase)?).map_err(wrong)?;
    print::to_stdout(&format!(
        "{}whole, and can be restored\n",
        summary(&opened.description)
    ))
}

fn keygen(output: &Path) -> Result<(), Failure> {
    if output.exists() {
        return Err(Failure::Failed(format!(
            "{} exists already: a key that backups are sealed for must not be lost",
            output.display()
        )));
    }
    let (text, recipient) = backup::generate_key();
    durable::replace(output, text.as_bytes(), PRIVATE)
        .map_err(|error| Failure::file(output, &error))?;
    print::to_stdout(&format!("{recipient}\n"))
}

/// What opens a backup: exactly one of both.
pub(crate) fn opener(key: Option<&Path>, passphrase: Option<&Path>) -> Result<Opener, Failure> {
    let (path, made) = match (key, passphrase) {
        (Some(path), None) => (path, Opener::keys(&secret_file(path)?)),
        (None, Some(path)) => (path, Opener::passphrase(&secret_file(path)?)),
        _ => {
            return Err(Failure::Usage(
                "give --key-file or --passphrase-file to open the backup".into(),
            ));
        }
    };
    made.map_err(|error| Failure::Usage(format!("{}: {error}", path.display())))
}

fn secret_file(path: &Path) -> Result<Zeroizing<String>, Failure> {
    std::fs::read_to_string(path)
        .map(Zeroizing::new)
        .map_err(|error| Failure::file(path, &error))
}

/// What a backup holds, for people.
pub(crate) fn summary(description: &Description) -> String {
    let Description {
        cluster_id,
        cluster_name,
        lineage,
        node_id,
        created_ms,
        index,
        policy_revision,
        members,
        accounts,
        feature_level,
        version,
        ..
    } = description;
    let policy =
        policy_revision.map_or_else(|| "none".into(), |revision| format!("revision {revision}"));
    format!(
        "cluster   {cluster_name} ({cluster_id}), lineage {lineage}\nmade      {} on node {node_id}, version {version}\n\
         holds     index {index}, policy {policy}, {accounts} service accounts, {members} members, feature level \
         {feature_level}\n",
        time(*created_ms)
    )
}
