//! Asks a running enforcer.

use std::{
    io,
    path::{Path, PathBuf},
};

use axum::http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use thiserror::Error;
use tokio::net::UnixStream;

use crate::api::Refusal;

/// Why there is no answer, or not the one that was hoped for. Each text names cause and mend.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("no enforcer is listening on {}: {cause}; start one (`enforcer run`), or say --socket", path.display())]
    NotRunning {
        /// The socket.
        path: PathBuf,
        /// The kernel's words.
        cause: io::Error,
    },
    /// The socket is not for everybody.
    #[error("not allowed to ask the enforcer on {}: use sudo", .0.display())]
    Forbidden(PathBuf),
    /// It refuses.
    #[error("{}", .0.join("\n"))]
    Refused(Vec<String>),
    /// The answer is none.
    #[error("what answers on {} is no enforcer of this version: {cause}", path.display())]
    Strange {
        /// The socket.
        path: PathBuf,
        /// What was found.
        cause: String,
    },
}

/// The enforcer that listens on a socket.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// Of the enforcer that listens on `socket`. Nothing is asked yet.
    pub fn of(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
        }
    }

    /// Gets what is at `path`.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.ask(Method::GET, path, Vec::new()).await
    }

    /// Posts `body` to `path`.
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ClientError> {
        self.ask(Method::POST, path, self.json(body)?).await
    }

    /// Puts `body` to `path`.
    pub async fn put<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ClientError> {
        self.ask(Method::PUT, path, self.json(body)?).await
    }

    fn json(&self, body: &impl Serialize) -> Result<Vec<u8>, ClientError> {
        serde_json::to_vec(body).map_err(|error| self.strange(error))
    }

    async fn ask<T: DeserializeOwned>(&self, method: Method, path: &str, body: Vec<u8>) -> Result<T, ClientError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|cause| {
            let path = self.socket.clone();
            if cause.kind() == io::ErrorKind::PermissionDenied {
                ClientError::Forbidden(path)
            } else {
                ClientError::NotRunning { path, cause }
            }
        })?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.strange(error))?;
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "enforcer")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| self.strange(error))?;
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| self.strange(error))?;
        let status = response.status();
        let body = response
            .into_body()
            .collect()
            .await
            .map_err(|error| self.strange(error))?;
        let body = body.to_bytes();
        if status == StatusCode::OK {
            return serde_json::from_slice(&body).map_err(|error| self.strange(error));
        }
        match serde_json::from_slice::<Refusal>(&body) {
            Ok(refusal) => Err(ClientError::Refused(refusal.errors)),
            Err(_) => Err(self.strange(format!("status {status}"))),
        }
    }

    fn strange(&self, cause: impl ToString) -> ClientError {
        ClientError::Strange {
            path: self.socket.clone(),
            cause: cause.to_string(),
        }
    }
}
