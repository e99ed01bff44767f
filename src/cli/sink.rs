//! `sink`: the reference backend.

use super::{Failure, other, out::say};
use crate::backend::signing_key_of;
use crate::config::time_span;
use crate::sink::{Settings, run};
use crate::web::SecretFile;
use clap::Args as ClapArgs;
use std::{net::SocketAddr, path::PathBuf, process::ExitCode, time::Duration};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    /// Where to listen; port 0 lets the system choose, and the line printed at start says which
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8080", value_parser = address)]
    listen: SocketAddr,
    /// Directory for what is received
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Ask for the bearer token in the first line of this file
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Ask for signatures with a secret of this file (`whsec_…`, one a line)
    #[arg(long, value_name = "FILE")]
    signing_secret_file: Option<PathBuf>,
    /// Answer look-ups from this directory file
    #[arg(long, value_name = "FILE")]
    directory: Option<PathBuf>,
    /// Cache-Control header of look-ups
    #[arg(long, value_name = "VALUE")]
    cache_control: Option<String>,
    /// Answer 503 to this share of the requests (0 to 1): half before storing, half after
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = share)]
    fail_rate: f64,
    /// Answer every request with this status, and store nothing
    #[arg(long, value_name = "CODE", value_parser = status)]
    status: Option<u16>,
    /// Wait this long before each answer, like 50ms
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = time_span)]
    delay: Duration,
    /// Never answer
    #[arg(long)]
    hang: bool,
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("write a number from 0 to 1".to_owned()),
    }
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let address = text.replace("localhost:", "127.0.0.1:").parse();
    address.map_err(|_| "write an IP address with a port, like 127.0.0.1:8080".to_owned())
}

fn status(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(status) if (200..600).contains(&status) => Ok(status),
        _ => Err("write a status from 200 to 599".to_owned()),
    }
}

pub(super) async fn serve(args: Args) -> Result<ExitCode, Failure> {
    let secrets = |path: &Option<PathBuf>| match path {
        Some(path) => SecretFile::open(path).map(|file| file.all().to_vec()).map_err(other),
        None => Ok(Vec::new()),
    };
    let token = secrets(&args.token_file)?.into_iter().next();
    let signing_secrets = secrets(&args.signing_secret_file)?;
    if let (Some(path), Some(Err(why))) = (
        &args.signing_secret_file,
        signing_secrets.iter().map(|text| signing_key_of(text)).find(Result::is_err),
    ) {
        return Err(other(format!("{}: {why}", path.display())));
    }
    let listener = TcpListener::bind(args.listen)
        .await
        .map_err(|error| other(format!("cannot listen on {}: {error}: set another --listen", args.listen)))?;
    say(&format!("sink: listening on http://{}/\n", listener.local_addr().map_err(other)?))?;
    let place = args.data.display().to_string();
    let settings = Settings {
        data: args.data,
        token,
        fail_rate: args.fail_rate,
        status: args.status,
        delay: args.delay,
        hang: args.hang,
        signing_secrets,
        directory: args.directory,
        cache_control: args.cache_control,
    };
    let mut terminate = signal(SignalKind::terminate()).map_err(other)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(other)?;
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    run(listener, settings, stop).await.map_err(|error| other(format!("{place}: {error}")))?;
    Ok(ExitCode::SUCCESS)
}
