//! API keys: made once, shown once, stored as hashes.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use rand::RngExt;
use rusqlite::{Connection, OptionalExtension, params};
use serde::Serialize;
use sha2::{Digest, Sha256};

/// What keys begin with, so that people and scanners of leaked secrets recognise them.
const BEGINNING: &str = "strata-";
/// Characters of the random part: 43 of 62 letters and digits are 256 bits.
const RANDOM: usize = 43;
/// Numbers of keys are up to this, which JavaScript still knows exactly. They are drawn: the database would give the number of a key that was
/// revoked to the next one.
const IDS: i64 = (1 << 53) - 1;
const LETTERS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// What can go wrong with keys.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The database fails.
    #[error("the key database {path}: {source}")]
    Database {
        /// Its file.
        path: String,
        /// Why.
        source: rusqlite::Error,
    },
    /// The folder cannot be made.
    #[error("cannot make the folder {path}: {source}")]
    Folder {
        /// The folder.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// There is a key of that name.
    #[error("there is a key named {0:?} already; revoke it first or choose another name")]
    Taken(String),
    /// The name cannot be used.
    #[error("a key's name has 1 to 100 characters and no line breaks; found {0:?}")]
    Name(String),
    /// There is no key of that name.
    #[error("there is no key named {0:?}; `strata keys` lists them")]
    Unknown(String),
}

/// What is known of a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Key {
    /// A number of its own, which no other key ever had: what was used up or computed for one key is not another's.
    pub id: i64,
    /// Its name, for people.
    pub name: String,
    /// Its first characters, to recognise it by.
    pub beginning: String,
    /// When it was made, in seconds since 1970.
    pub created: i64,
    /// Requests a minute it may make; none means any number.
    pub requests_per_minute: Option<u32>,
    /// Tokens a minute it may use, prompts and answers together; none means any number.
    pub tokens_per_minute: Option<u32>,
}

/// The keys in the home folder's database.
#[derive(Debug)]
pub struct Keys {
    path: String,
    connection: Mutex<Connection>,
}

impl Keys {
    /// The keys in the database at `path`, which is made if it is not there.
    ///
    /// # Errors
    /// The file cannot be opened or is no database.
    pub fn open(path: &Path) -> Result<Keys, KeyError> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)
                .map_err(|source| KeyError::Folder { path: folder.display().to_string(), source })?;
        }
        let name = path.display().to_string();
        let failed = |source| KeyError::Database { path: name.clone(), source };
        let connection = Connection::open(path).map_err(failed)?;
        // The server reads while `strata keys` writes.
        connection.busy_timeout(std::time::Duration::from_secs(5)).map_err(failed)?;
        connection.pragma_update(None, "journal_mode", "wal").map_err(failed)?;
        connection
            .execute_batch(
                "create table if not exists keys (
                    id integer primary key,
                    name text not null unique,
                    hash blob not null unique,
                    beginning text not null,
                    created integer not null,
                    requests_per_minute integer,
                    tokens_per_minute integer
                ) strict",
            )
            .map_err(failed)?;
        Ok(Keys { path: name, connection: Mutex::new(connection) })
    }

    /// Makes a key. The secret is returned once and stored nowhere.
    ///
    /// # Errors
    /// The name is taken or cannot be used.
    pub fn create(
        &self,
        name: &str,
        requests_per_minute: Option<u32>,
        tokens_per_minute: Option<u32>,
    ) -> Result<(String, Key), KeyError> {
        if !(1..=100).contains(&name.chars().count()) || name.chars().any(char::is_control) {
            return Err(KeyError::Name(name.into()));
        }
        let mut random = rand::rng();
        let letters = (0..RANDOM).map(|_| char::from(LETTERS[random.random_range(0..LETTERS.len())]));
        let secret: String = BEGINNING.chars().chain(letters).collect();
        let beginning = secret[..BEGINNING.len() + 4].to_string();
        let id = random.random_range(1..=IDS);
        let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs() as i64);
        let connection = self.lock();
        let made = connection.execute(
            "insert into keys (id, name, hash, beginning, created, requests_per_minute, tokens_per_minute)
             values (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            params![id, name, hash(&secret), beginning, created, requests_per_minute, tokens_per_minute],
        );
        match made {
            Ok(_) => {}
            Err(rusqlite::Error::SqliteFailure(error, _))
                if error.code == rusqlite::ErrorCode::ConstraintViolation =>
            {
                return Err(KeyError::Taken(name.into()));
            }
            Err(error) => return Err(self.failed(error)),
        }
        let name = name.to_string();
        Ok((secret, Key { id, name, beginning, created, requests_per_minute, tokens_per_minute }))
    }

    /// All keys, oldest first.
    ///
    /// # Errors
    /// The database fails.
    pub fn list(&self) -> Result<Vec<Key>, KeyError> {
        let connection = self.lock();
        let sql = format!("select {COLUMNS} from keys order by created, name");
        let mut statement = connection.prepare_cached(&sql).map_err(|error| self.failed(error))?;
        let rows = statement.query_map([], key_of).map_err(|error| self.failed(error))?;
        rows.collect::<Result<_, _>>().map_err(|error| self.failed(error))
    }

    /// Makes a key worthless from now on.
    ///
    /// # Errors
    /// There is no key of that name.
    pub fn revoke(&self, name: &str) -> Result<(), KeyError> {
        let removed = self.lock().execute("delete from keys where name = ?1", [name]);
        match removed.map_err(|error| self.failed(error))? {
            0 => Err(KeyError::Unknown(name.into())),
            _ => Ok(()),
        }
    }

    /// The key with this secret.
    ///
    /// # Errors
    /// The database fails.
    pub fn find(&self, secret: &str) -> Result<Option<Key>, KeyError> {
        // Looking up a hash tells nothing of the secret by the time it takes.
        let connection = self.lock();
        let sql = format!("select {COLUMNS} from keys where hash = ?1");
        let mut statement = connection.prepare_cached(&sql).map_err(|error| self.failed(error))?;
        statement.query_row([hash(secret)], key_of).optional().map_err(|error| self.failed(error))
    }

    /// Whether there is any key: then every request needs one.
    ///
    /// # Errors
    /// The database fails.
    pub fn any(&self) -> Result<bool, KeyError> {
        let connection = self.lock();
        let statement = connection.prepare_cached("select exists (select 1 from keys)");
        let found = statement.and_then(|mut statement| statement.query_row([], |row| row.get(0)));
        found.map_err(|error| self.failed(error))
    }

    fn failed(&self, source: rusqlite::Error) -> KeyError {
        KeyError::Database { path: self.path.clone(), source }
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const COLUMNS: &str = "id, name, beginning, created, requests_per_minute, tokens_per_minute";

fn key_of(row: &rusqlite::Row<'_>) -> rusqlite::Result<Key> {
    Ok(Key {
        id: row.get(0)?,
        name: row.get(1)?,
        beginning: row.get(2)?,
        created: row.get(3)?,
        requests_per_minute: row.get(4)?,
        tokens_per_minute: row.get(5)?,
    })
}

/// The secrets have 256 random bits: a plain hash cannot be searched, and a slow one would only slow down the server.
fn hash(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_found_by_its_secret_until_it_is_revoked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("home").join("strata.db");
        let keys = Keys::open(&path).unwrap();
        assert!(!keys.any().unwrap());
        let (secret, key) = keys.create("lab", Some(60), None).unwrap();
        assert_eq!(keys.find(&secret).unwrap(), Some(key.clone()));
        assert_eq!(keys.find(&secret[1..]).unwrap(), None);
        assert_eq!(keys.list().unwrap(), std::slice::from_ref(&key));
        assert!(matches!(keys.create("lab", None, None), Err(KeyError::Taken(_))));
        // Another process sees and revokes it.
        let other = Keys::open(&path).unwrap();
        other.revoke("lab").unwrap();
        assert_eq!(keys.find(&secret).unwrap(), None);
        assert!(matches!(keys.revoke("lab"), Err(KeyError::Unknown(_))));
        // What the server remembers of a revoked key is not the next one's.
        let (_, next) = keys.create("lab", None, None).unwrap();
        assert_ne!(next.id, key.id);
    }

    #[test]
    fn secrets_are_not_in_the_database() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("strata.db");
        let keys = Keys::open(&path).unwrap();
        let (secret, _) = keys.create("a", None, None).unwrap();
        drop(keys);
        for file in std::fs::read_dir(folder.path()).unwrap() {
            let bytes = std::fs::read(file.unwrap().path()).unwrap();
            let middle = &secret.as_bytes()[20..36];
            assert!(!bytes.windows(middle.len()).any(|window| window == middle));
        }
    }

    #[test]
    fn names_are_for_people() {
        let folder = tempfile::tempdir().unwrap();
        let keys = Keys::open(&folder.path().join("strata.db")).unwrap();
        for name in ["", "a\nb", &"x".repeat(101)] {
            assert!(matches!(keys.create(name, None, None), Err(KeyError::Name(_))), "{name:?}");
        }
        assert!(keys.create("Station 3, Ärzte", None, None).is_ok());
    }
}
