//! `neuwerk cluster recover | rejoin | restore`: when nodes or a quorum are lost. Recovery and restoring work on the data
//! of a node that does not run; joining anew is asked of a running one, which goes on enforcing meanwhile.

use std::time::{SystemTime, UNIX_EPOCH};

use api::recovery::RejoinRequest;
use cluster::backup;
use cluster::identity::Layout;
use cluster::recovery::{self, Begun, Choice, Holding};

use crate::args::{Recover, Rejoin, Restore};
use crate::backup::opener;
use crate::connect::control;
use crate::failure::{Failure, chain};
use crate::print;

pub(crate) async fn recover(recover: Recover) -> Result<(), Failure> {
    let mut holdings = Vec::new();
    for data_dir in &recover.data_dir {
        match recovery::survey(data_dir).await {
            Ok(holding) => holdings.push(holding),
            // One that cannot be read is no reason not to look at the others.
            Err(error) if recover.data_dir.len() > 1 => {
                print::to_stderr(&format!("neuwerk: {}", chain(&error)))
            }
            Err(error) => return Err(Failure::Failed(chain(&error))),
        }
    }
    let choice = recovery::choose(&holdings).map_err(|error| Failure::Failed(chain(&error)))?;
    let Some(choice) = choice else {
        return Err(Failure::Failed(
            "none of the directories can be used".into(),
        ));
    };
    print::to_stdout(&table(&holdings))?;
    print::to_stdout(&verdict(&holdings, &choice))?;
    let best = holdings.swap_remove(choice.best);
    let name = cluster_name(&best);
    let Some(typed) = &recover.confirm else {
        let data_dir = best.data_dir.display();
        return print::to_stdout(&format!(
            "\nNothing was changed. To go on from it, with its node as the only member, make sure that no other member \
             will ever be started on its old data, then:\n  neuwerk cluster recover --data-dir {data_dir} --confirm {name}\n"
        ));
    };
    if *typed != name {
        return Err(Failure::Usage(format!(
            "the cluster is called {name}, not {typed}"
        )));
    }
    let begun = recovery::recover(best, now_ms())
        .await
        .map_err(|error| Failure::Failed(chain(&error)))?;
    print::to_stdout(&format!(
        "\n{}Start this node, then put every other node back with: neuwerk cluster rejoin\n",
        told(&begun)
    ))
}

/// What each directory holds, a row each.
fn table(holdings: &[Holding]) -> String {
    let heading = [
        "NODE",
        "INDEX",
        "TERM",
        "COMMITTED",
        "TIME",
        "POLICY",
        "ACCOUNTS",
        "MEMBERS",
        "VOTES",
        "DIRECTORY",
    ];
    let mut rows = vec![heading.map(String::from).to_vec()];
    for holding in holdings {
        let node_id = holding.meta.node_id;
        let policy = holding
            .state
            .policy()
            .map(|policy| policy.revision.to_string());
        rows.push(vec![
            node_id.to_string(),
            holding.end.index.to_string(),
            holding.end.term.to_string(),
            holding.committed_index.to_string(),
            time(holding.state.time_ms()),
            policy.unwrap_or_else(|| "-".into()),
            holding.state.accounts().count().to_string(),
            holding.state.members().count().to_string(),
            if holding.voters.contains(&node_id) {
                "yes"
            } else {
                "no"
            }
            .into(),
            holding.data_dir.display().to_string(),
        ]);
    }
    let mut text = print::columns(&rows);
    for holding in holdings {
        if let Some(damage) = &holding.damage {
            text.push_str(&format!(
                "{}: the log is damaged ({damage}); what is shown is its newest snapshot\n",
                holding.data_dir.display()
            ));
        }
    }
    text
}

/// Which is the best, and what may be lost by going on from it.
fn verdict(holdings: &[Holding], choice: &Choice) -> String {
    let best = &holdings[choice.best];
    let (here, voters) = (choice.here, choice.voters);
    let mut text = format!(
        "\nbest: node {} in {}\n{here} of {voters} voters are here. ",
        best.meta.node_id,
        best.data_dir.display()
    );
    let lost = match choice.has_quorum() {
        true => "That is a majority: nothing that was acknowledged is missing. If these nodes can run, start them \
                 instead.\n"
            .to_owned(),
        false => format!(
            "That is no majority: changes after {} may be lost that the others had acknowledged.\n",
            time(best.state.time_ms())
        ),
    };
    text.push_str(&lost);
    let open = best.end.index - best.committed_index;
    if open > 0 {
        text.push_str(&format!(
            "Its last {open} entries were not known to be acknowledged; they are kept.\n"
        ));
    }
    text
}

fn cluster_name(holding: &Holding) -> String {
    let settings = holding.state.settings();
    settings.map_or_else(String::new, |(settings, _)| settings.cluster_name.clone())
}

fn told(begun: &Begun) -> String {
    let mut text = format!(
        "cluster {} goes on under lineage {}, with node {} as its only member\n",
        begun.cluster_id, begun.lineage, begun.node_id
    );
    if let Some(aside) = &begun.aside {
        text.push_str(&format!("the old data is kept in {}\n", aside.display()));
    }
    text
}

pub(crate) async fn rejoin(rejoin: Rejoin) -> Result<(), Failure> {
    let request = RejoinRequest {
        join: rejoin.join,
        confirm: rejoin.confirm,
    };
    let answer = control(&rejoin.control_socket)?.rejoin(&request).await?;
    if rejoin.json {
        return print::json(&answer);
    }
    let mut text = format!(
        "the old data is kept in {}\nasking to join through {}\n",
        answer.kept_at,
        answer.join.join(", ")
    );
    text.push_str("neuwerk status shows when it is in\n");
    if let Some(old) = answer.old_node_id {
        text.push_str(&format!(
            "if the cluster still lists it: neuwerk cluster members remove {old}\n"
        ));
    }
    print::to_stdout(&text)
}

pub(crate) async fn restore(restore: Restore) -> Result<(), Failure> {
    let opener = opener(
        restore.key_file.as_deref(),
        restore.passphrase_file.as_deref(),
    )?;
    let file =
        std::fs::read(&restore.from).map_err(|error| Failure::file(&restore.from, &error))?;
    let opened = backup::open(&file, &opener).map_err(|error| {
        Failure::Failed(format!("{}: {}", restore.from.display(), chain(&error)))
    })?;
    let layout = Layout {
        data_dir: restore.data_dir,
        node_id_path: restore.node_id_path,
    };
    let summary = crate::backup::summary(&opened.description);
    let begun = recovery::restore(opened, &layout, now_ms())
        .await
        .map_err(|error| Failure::Failed(chain(&error)))?;
    print::to_stdout(&format!(
        "{summary}\n{}Start this node; nodes of the old lineage come back with: neuwerk cluster rejoin\n",
        told(&begun)
    ))
}

fn now_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// RFC 3339, to the second.
pub(crate) fn time(ms: u64) -> String {
    let seconds = i64::try_from(ms / 1000).unwrap_or_default();
    time::OffsetDateTime::from_unix_timestamp(seconds)
        .ok()
        .and_then(|time| {
            time.format(&time::format_description::well_known::Rfc3339)
                .ok()
        })
        .unwrap_or_default()
}
