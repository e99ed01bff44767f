//! `directory lookup`: what the directory says, from where, and how fast. `directory forget`: it is asked anew.

use super::{
    Failure, other,
    out::{say, say_json},
};
use crate::config::Config;
use crate::directory::{Directory, Unavailable, check_prefix, wire::PolicyAnswer};
use crate::mail::Address;
use crate::rules::{Addressing, Person, Project, Tenant};
use clap::{Args as ClapArgs, Subcommand};
use serde::Serialize;
use std::{fmt::Write as _, process::ExitCode, sync::Arc, time::Instant};

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Say what the directory knows of addresses; exit code 1 if one is unknown or the directory cannot answer
    ///
    /// An integration address shows its tenant and project. Any other address is looked up in the tenants of the
    /// integration addresses that are given with it, and in those of --tenant.
    #[command(
        after_help = "Examples:\n  activity-milter directory lookup 1001.mycompany@severamail.com bo@acme.test\n  \
                            activity-milter directory lookup --tenant mycompany anna@mycompany.test"
    )]
    Lookup(Lookup),
    /// Have every service ask the directory anew about these tenants
    ///
    /// What a service has learnt of a tenant counts for a while (directory.cache_hits), or until the copy of Severa is brought
    /// up to date. This ends that time, on every machine that shares the queue, within a second or two; while the business
    /// system cannot answer, what was known stays in use. A directory file needs none of it.
    #[command(
        after_help = "Examples:\n  activity-milter directory forget mycompany\n  activity-milter directory forget --all"
    )]
    Forget(Forget),
}

#[derive(Debug, ClapArgs)]
struct Forget {
    /// Prefixes of tenants
    #[arg(value_name = "PREFIX", required_unless_present = "all", conflicts_with = "all")]
    prefixes: Vec<String>,
    /// All tenants
    #[arg(long)]
    all: bool,
}

impl Args {
    /// True if something is written for the service.
    pub(super) fn writes(&self) -> bool {
        matches!(self.command, Command::Forget(_))
    }
}

#[derive(Debug, ClapArgs)]
struct Lookup {
    /// Addresses
    #[arg(value_name = "ADDRESS", required = true)]
    addresses: Vec<String>,
    /// A tenant's prefix; give one for each
    #[arg(long = "tenant", value_name = "PREFIX")]
    tenants: Vec<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Everything that was found.
#[derive(Debug, Default, Serialize)]
struct Found {
    /// Where the answers come from: the file with its age, or the backend, asked now.
    source: String,
    elapsed_ms: u64,
    tenants: Vec<TenantWord>,
    addresses: Vec<AddressWord>,
}

#[derive(Debug, Serialize)]
struct TenantWord {
    prefix: String,
    id: String,
    name: String,
    active: bool,
    activity_type: String,
    shadow: bool,
    /// What it expects, where it says so.
    policy: PolicyAnswer,
}

/// What one address is, for one tenant.
#[derive(Debug, Serialize)]
struct AddressWord {
    address: String,
    tenant: Option<String>,
    /// `integration address`, `user`, `contact`, `unknown`, `not looked up` (no tenant), `no such tenant`, `no such project`.
    what: &'static str,
    /// The id of the user, contact or project.
    id: Option<String>,
    name: Option<String>,
    customer: Option<String>,
}

impl AddressWord {
    fn of(address: &Address, tenant: Option<&Tenant>, what: &'static str) -> Self {
        let tenant = tenant.map(|tenant| tenant.prefix.clone());
        Self { address: address.to_string(), tenant, what, id: None, name: None, customer: None }
    }

    fn is_unknown(&self) -> bool {
        matches!(self.what, "unknown" | "not looked up" | "no such tenant" | "no such project")
    }
}

impl From<&Tenant> for TenantWord {
    fn from(tenant: &Tenant) -> Self {
        let Tenant { id, prefix, name, active, activity_type, shadow, policy } = tenant.clone();
        Self { prefix, id, name, active, activity_type, shadow, policy: policy.as_ref().into() }
    }
}

pub(super) async fn directory(config: &Config, args: Args) -> Result<ExitCode, Failure> {
    let args = match args.command {
        Command::Lookup(args) => args,
        Command::Forget(args) => return forget(config, args).await,
    };
    let parse = |text: &String| {
        Address::parse(text).map_err(|error| {
            let message = format!("\"{text}\" is no address: {error}: write one like anna@example.com");
            Failure::CommandLine(message)
        })
    };
    let addresses = args.addresses.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
    if args.tenants.is_empty() && !addresses.iter().any(|address| config.addressing.covers(address)) {
        let remedy = "add --tenant PREFIX, or one of its integration addresses";
        return Err(Failure::CommandLine(format!("no tenant is named to look in: {remedy}")));
    }
    let directory = config.outside.open_directory()?;
    let started = Instant::now();
    let found = look_up(&directory, &config.addressing, &addresses, &args.tenants).await;
    let cannot =
        |error: Unavailable| other(format!("the directory ({}) cannot answer: {error}", directory.source()));
    let mut found = found.map_err(cannot)?;
    found.source = directory.source();
    found.elapsed_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    if args.json {
        say_json(&found)?;
    } else {
        say(&text(&found).map_err(other)?)?;
    }
    Ok(ExitCode::from(u8::from(found.addresses.iter().any(AddressWord::is_unknown))))
}

/// Tells the services through the queue that they share.
async fn forget(config: &Config, args: Forget) -> Result<ExitCode, Failure> {
    let mut prefixes = if args.all { vec![String::new()] } else { args.prefixes };
    for prefix in &mut prefixes {
        *prefix = prefix.to_lowercase();
        if !args.all {
            check_prefix(prefix).map_err(Failure::CommandLine)?;
        }
    }
    let queue = super::queue::beside(config).await?;
    queue.expire(prefixes).await.map_err(other)?;
    Ok(ExitCode::SUCCESS)
}

async fn look_up(
    directory: &Arc<dyn Directory>,
    addressing: &Addressing,
    addresses: &[Address],
    prefixes: &[String],
) -> Result<Found, Unavailable> {
    let (mut found, mut tenants) = (Found::default(), Vec::<Tenant>::new());
    let mut remember = |tenant: &Tenant| {
        if !tenants.iter().any(|known| known.id == tenant.id) {
            tenants.push(tenant.clone());
        }
    };
    for prefix in prefixes {
        match directory.tenant(&prefix.to_lowercase()).await? {
            Some(tenant) => remember(&tenant),
            None => return Err(Unavailable(format!("it has no tenant \"{prefix}\""))),
        }
    }
    let (ours, others): (Vec<_>, Vec<_>) = addresses.iter().partition(|address| addressing.covers(address));
    for address in ours {
        let readings = addressing.readings(address);
        let prefixes: Vec<_> = readings.iter().map(|reading| reading.prefix.clone()).collect();
        let Some((index, tenant)) = directory.tenant_of(&prefixes).await? else {
            found.addresses.push(AddressWord::of(address, None, "no such tenant"));
            continue;
        };
        remember(&tenant);
        let word = match &readings[index].project {
            None => AddressWord::of(address, Some(&tenant), "integration address"),
            Some(number) => match directory.project(&tenant, number, &[]).await? {
                Some(Project { id, customer, .. }) => AddressWord {
                    id: Some(id),
                    customer,
                    ..AddressWord::of(address, Some(&tenant), "integration address")
                },
                None => AddressWord::of(address, Some(&tenant), "no such project"),
            },
        };
        found.addresses.push(word);
    }
    let others: Vec<Address> = others.into_iter().cloned().collect();
    for tenant in tenants.iter().filter(|_| !others.is_empty()) {
        let people = directory.people(tenant, &others).await?;
        for (address, person) in others.iter().zip(people.persons) {
            found.addresses.extend(words(address, tenant, person));
        }
    }
    found.addresses.extend(
        others
            .iter()
            .filter(|_| tenants.is_empty())
            .map(|address| AddressWord::of(address, None, "not looked up")),
    );
    found.tenants = tenants.iter().map(TenantWord::from).collect();
    Ok(found)
}

/// One entry for each thing an address is.
fn words(address: &Address, tenant: &Tenant, person: Person) -> Vec<AddressWord> {
    let word = |what| AddressWord::of(address, Some(tenant), what);
    let user = person.user.map(|user| AddressWord { id: Some(user.id), name: user.name, ..word("user") });
    let contacts = person.contacts.into_iter().map(|contact| AddressWord {
        id: Some(contact.id),
        name: contact.name,
        customer: Some(contact.customer_id),
        ..word("contact")
    });
    let found: Vec<_> = user.into_iter().chain(contacts).collect();
    if found.is_empty() { vec![word("unknown")] } else { found }
}

fn text(found: &Found) -> Result<String, std::fmt::Error> {
    let mut out = String::new();
    for tenant in &found.tenants {
        let state = if tenant.active { "active" } else { "not active" };
        let shadow = if tenant.shadow { ", shadow mode" } else { "" };
        let TenantWord { prefix, id, name, activity_type, .. } = tenant;
        writeln!(out, "tenant {prefix}: {id} \"{name}\", {state}{shadow}, activity type {activity_type}")?;
    }
    for word in &found.addresses {
        write!(out, "{}: {}", word.address, word.what)?;
        for (label, value) in [
            ("", &word.id),
            (" \"", &word.name),
            (" of customer ", &word.customer),
            (" in tenant ", &word.tenant),
        ] {
            let Some(value) = value else { continue };
            let (label, end) =
                if label.is_empty() { (" ", "") } else { (label, if label == " \"" { "\"" } else { "" }) };
            write!(out, "{label}{value}{end}")?;
        }
        writeln!(out)?;
    }
    writeln!(out, "source: {} (asked now, {} ms)", found.source, found.elapsed_ms)?;
    Ok(out)
}
