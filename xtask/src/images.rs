//! `cargo xtask images [NAME…]`: test images from Debian's packages, as docker archives in `.cache/images`.
//!
//! No registry is needed: the packages' closure is downloaded by name, unpacked without their scripts, and packed as
//! one layer. What the packages' scripts would have made (users, folders) is made here.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;

/// Where the archives are, below the workspace.
pub const FOLDER: &str = ".cache/images";

/// A test image.
struct Image {
    /// `test.local/<name>:1`.
    name: &'static str,
    packages: &'static [&'static str],
    /// Users of the image, as lines of /etc/passwd.
    users: &'static [&'static str],
    folders: &'static [&'static str],
    /// Path, mode, text.
    files: &'static [(&'static str, u32, &'static str)],
    env: &'static [&'static str],
    entrypoint: &'static [&'static str],
    cmd: &'static [&'static str],
    /// Empty: SIGTERM.
    stop_signal: &'static str,
}

/// Packages of a closure that no test image needs: package management, and what only scripts use.
const LEFT_OUT: &[&str] = &[
    "perl",
    "libperl",
    "dpkg_",
    "tar_",
    "debconf",
    "libllvm",
    "libz3",
    "usrmerge",
    "locales",
    "libc-l10n",
    "ssl-cert",
    "iproute2",
    "libelf",
    "libbpf",
];

const HTTPD_CONF: &str = "\
ServerRoot /usr/local/apache2
ServerName localhost
Listen 80
PidFile /run/httpd.pid
LoadModule mpm_event_module /usr/lib/apache2/modules/mod_mpm_event.so
LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so
LoadModule dir_module /usr/lib/apache2/modules/mod_dir.so
LoadModule autoindex_module /usr/lib/apache2/modules/mod_autoindex.so
LoadModule mime_module /usr/lib/apache2/modules/mod_mime.so
TypesConfig /etc/mime.types
User www-data
Group www-data
DocumentRoot /usr/local/apache2/htdocs
DirectoryIndex index.html
<Directory /usr/local/apache2/htdocs>
  Options Indexes FollowSymLinks
  Require all granted
</Directory>
ErrorLog /proc/self/fd/2
ServerLimit 2
StartServers 1
";

const POSTGRES_ENTRYPOINT: &str = r#"#!/bin/sh
# Makes the database on first start, then becomes the server. Arguments go to the server.
set -e
: "${PGDATA:=/var/lib/postgresql/data}" "${POSTGRES_USER:=postgres}"
mkdir -p "$PGDATA"
chown postgres:postgres "$PGDATA" /run/postgresql
chmod 700 "$PGDATA"
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  printf '%s' "${POSTGRES_PASSWORD:-postgres}" > /tmp/pw; chown postgres /tmp/pw
  gosu postgres initdb -D "$PGDATA" -U "$POSTGRES_USER" --pwfile=/tmp/pw -E UTF8 --locale=C --auth-host=scram-sha-256 --auth-local=trust --no-sync > /tmp/initdb.log 2>&1 || { cat /tmp/initdb.log; exit 1; }
  rm /tmp/pw
  echo "host all all all scram-sha-256" >> "$PGDATA/pg_hba.conf"
  echo "host replication all all scram-sha-256" >> "$PGDATA/pg_hba.conf"
  sync -f "$PGDATA"
fi
exec gosu postgres postgres -D "$PGDATA" -c recovery_init_sync_method=syncfs -c listen_addresses='*' -c jit=off -c unix_socket_directories=/run/postgresql "$@"
"#;

const NGINX_CONF: &str = "\
user www-data;
worker_processes 1;
pid /run/nginx.pid;
error_log /dev/stderr;
events {}
http {
  include /etc/nginx/mime.types;
  access_log off;
  server { listen 80; root /usr/share/nginx/html; }
}
";

const MARIADB_CONF: &str = "\
[mariadbd]
user = mysql
datadir = /var/lib/mysql/data
socket = /run/mysqld/mysqld.sock
skip_name_resolve
innodb_log_file_size = 16M
[client]
socket = /run/mysqld/mysqld.sock
";

const MARIADB_ENTRYPOINT: &str = r#"#!/bin/sh
# Makes the database on first start, then becomes the server. Arguments go to the server.
set -e
: "${MYSQL_ROOT_PASSWORD:?is the password that root gets}"
data=/var/lib/mysql/data sql=/usr/share/mysql
mkdir -p "$data" /run/mysqld
chown mysql:mysql "$data" /run/mysqld
if [ ! -e "$data/.made" ]; then
  # Also after a first start that was cut off: nothing was ever in there.
  rm -rf "${data:?}"/*
  quoted=$(printf '%s' "$MYSQL_ROOT_PASSWORD" | sed "s/['\\\\]/\\\\&/g")
  {
    # --bootstrap takes a statement to a line.
    echo "create database mysql;"
    echo "use mysql;"
    echo "set @auth_root_socket = null;"
    cat "$sql/mysql_system_tables.sql" "$sql/mysql_performance_tables.sql" "$sql/mysql_system_tables_data.sql"
    echo "delete from global_priv where host <> 'localhost';"
    echo "flush privileges;"
    echo "set password for root@localhost = password('$quoted');"
    echo "create user root@'%' identified by '$quoted';"
    echo "grant all on *.* to root@'%' with grant option;"
  } > /tmp/first.sql
  mariadbd --bootstrap "$@" < /tmp/first.sql > /tmp/first.log 2>&1 || { cat /tmp/first.log; exit 1; }
  rm /tmp/first.sql
  echo > "$data/.made"
fi
exec mariadbd "$@"
"#;

const IMAGES: &[Image] = &[
    Image {
        name: "busybox",
        packages: &["busybox-static"],
        users: &[],
        folders: &[],
        files: &[],
        env: &[],
        entrypoint: &[],
        cmd: &["/bin/sh"],
        stop_signal: "",
    },
    Image {
        name: "httpd",
        packages: &["busybox-static", "apache2-bin", "media-types"],
        users: &["www-data:x:33:33:www-data:/var/www:/bin/false"],
        folders: &["usr/local/apache2/htdocs"],
        files: &[
            ("usr/local/apache2/conf/httpd.conf", 0o644, HTTPD_CONF),
            ("usr/local/apache2/htdocs/index.html", 0o644, "<html><body><h1>It works!</h1></body></html>\n"),
        ],
        env: &[],
        entrypoint: &[],
        cmd: &["/usr/sbin/apache2", "-f", "/usr/local/apache2/conf/httpd.conf", "-D", "FOREGROUND"],
        stop_signal: "",
    },
    Image {
        name: "nginx",
        packages: &["busybox-static", "nginx"],
        users: &["www-data:x:33:33:www-data:/var/www:/bin/false"],
        folders: &["usr/share/nginx/html", "var/lib/nginx", "var/log/nginx"],
        files: &[("etc/nginx/nginx.conf", 0o644, NGINX_CONF)],
        env: &[],
        entrypoint: &[],
        cmd: &["/usr/sbin/nginx", "-g", "daemon off;"],
        stop_signal: "",
    },
    Image {
        name: "mariadb",
        packages: &["busybox-static", "mariadb-server-core", "mariadb-client-core"],
        users: &["mysql:x:999:999:mysql:/var/lib/mysql:/bin/false"],
        folders: &["run/mysqld", "var/lib/mysql/data"],
        files: &[
            ("etc/mysql/my.cnf", 0o644, MARIADB_CONF),
            ("usr/local/bin/docker-entrypoint.sh", 0o755, MARIADB_ENTRYPOINT),
        ],
        env: &[],
        entrypoint: &["/usr/local/bin/docker-entrypoint.sh"],
        cmd: &[],
        stop_signal: "",
    },
    Image {
        name: "postgres",
        packages: &["busybox-static", "postgresql-15", "postgresql-client-15", "gosu"],
        users: &["postgres:x:999:999:postgres:/var/lib/postgresql:/bin/sh"],
        folders: &["run/postgresql", "var/lib/postgresql/data"],
        files: &[("usr/local/bin/docker-entrypoint.sh", 0o755, POSTGRES_ENTRYPOINT)],
        env: &[
            "PATH=/usr/lib/postgresql/15/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "PGDATA=/var/lib/postgresql/data",
        ],
        entrypoint: &["/usr/local/bin/docker-entrypoint.sh"],
        cmd: &[],
        // Fast shutdown: without it, PostgreSQL waits for its clients to leave.
        stop_signal: "SIGINT",
    },
    Image {
        name: "etcd",
        packages: &["busybox-static", "etcd-server", "etcd-client"],
        users: &[],
        folders: &[],
        files: &[],
        env: &[],
        entrypoint: &[],
        cmd: &["/usr/bin/etcd"],
        stop_signal: "",
    },
    Image {
        name: "patroni",
        packages: &[
            "busybox-static",
            "postgresql-15",
            "postgresql-client-15",
            "gosu",
            "patroni",
            "python3-urllib3",
            "python3-yaml",
            "python3-psycopg2",
        ],
        users: &["postgres:x:999:999:postgres:/var/lib/postgresql:/bin/sh"],
        folders: &["run/postgresql", "var/lib/postgresql"],
        files: &[],
        env: &["PATH=/usr/lib/postgresql/15/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        entrypoint: &[],
        cmd: &["/bin/sh"],
        stop_signal: "",
    },
    Image {
        name: "python",
        packages: &["busybox-static", "python3", "python3-kubernetes"],
        users: &[],
        folders: &[],
        files: &[],
        env: &[],
        entrypoint: &[],
        cmd: &["/usr/bin/python3"],
        stop_signal: "",
    },
    Image {
        name: "rabbitmq",
        packages: &["busybox-static", "rabbitmq-server"],
        users: &["rabbitmq:x:999:999:rabbitmq:/var/lib/rabbitmq:/bin/sh"],
        folders: &["var/lib/rabbitmq", "var/log/rabbitmq"],
        files: &[],
        env: &["PATH=/usr/lib/rabbitmq/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        entrypoint: &[],
        cmd: &["/usr/lib/rabbitmq/bin/rabbitmq-server"],
        stop_signal: "",
    },
    Image {
        name: "dnsutils",
        packages: &["busybox-static", "bind9-dnsutils"],
        users: &[],
        folders: &[],
        files: &[],
        env: &[],
        entrypoint: &[],
        cmd: &["/bin/sleep", "1000000"],
        stop_signal: "",
    },
];

/// Makes the images that are named (all, where none is) and not there yet.
pub fn run(names: &[String]) -> Result<()> {
    let folder = PathBuf::from(FOLDER);
    fs::create_dir_all(&folder)?;
    for image in IMAGES.iter().filter(|image| names.is_empty() || names.iter().any(|name| name == image.name)) {
        let archive = folder.join(format!("{}.tar", image.name));
        if archive.exists() {
            println!("{} is there", archive.display());
            continue;
        }
        let work = folder.join(format!("{}.work", image.name));
        let _ = fs::remove_dir_all(&work);
        make(image, &work, &archive).with_context(|| format!("image {}", image.name))?;
        fs::remove_dir_all(&work)?;
        println!("{} made", archive.display());
    }
    Ok(())
}

fn make(image: &Image, work: &Path, archive: &Path) -> Result<()> {
    let root = work.join("root");
    for folder in
        ["usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "etc", "tmp", "proc", "sys", "dev", "run", "root", "var"]
    {
        fs::create_dir_all(root.join(folder))?;
    }
    for (link, target) in
        [("bin", "usr/bin"), ("sbin", "usr/sbin"), ("lib", "usr/lib"), ("lib64", "usr/lib64"), ("var/run", "../run")]
    {
        symlink(target, root.join(link))?;
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    for package in download(image.packages, work)? {
        run_command(Command::new("dpkg-deb").args(["--fsys-tarfile"]).arg(&package), Some(&root))?;
    }
    for folder in ["usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info"] {
        let _ = fs::remove_dir_all(root.join(folder));
    }
    finish_root(image, &root)?;
    pack(image, work, &root, archive)
}

/// Downloads the packages with all that they depend on, as if nothing were installed.
fn download(packages: &[&str], work: &Path) -> Result<Vec<PathBuf>> {
    let archives = fs::canonicalize(work)?.join("archives");
    fs::create_dir_all(archives.join("partial"))?;
    let status = fs::canonicalize(work)?.join("status");
    fs::write(&status, "")?;
    let output = Command::new("apt-get")
        .arg("-o")
        .arg(format!("Dir::State::status={}", status.display()))
        .arg("-o")
        .arg(format!("Dir::Cache::archives={}", archives.display()))
        .args(["-o", "APT::Sandbox::User=root", "--no-install-recommends", "--download-only", "-y", "-qq", "install"])
        .args(packages)
        .output()
        .context("running apt-get")?;
    ensure!(
        output.status.success(),
        "apt-get (run `apt-get update` once): {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let mut found = Vec::new();
    for entry in fs::read_dir(&archives)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("").to_owned();
        if name.ends_with(".deb") && !LEFT_OUT.iter().any(|left_out| name.starts_with(left_out)) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Runs a command; with a folder, its output is unpacked there as a tar archive, through symbolic links of folders.
fn run_command(command: &mut Command, unpack_to: Option<&Path>) -> Result<()> {
    let Some(folder) = unpack_to else {
        let status = command.status()?;
        ensure!(status.success(), "{command:?}: {status}");
        return Ok(());
    };
    let mut producer = command.stdout(std::process::Stdio::piped()).spawn()?;
    let output = producer.stdout.take().context("no output")?;
    let unpacked =
        Command::new("tar").args(["--keep-directory-symlink", "-x", "-C"]).arg(folder).stdin(output).status()?;
    let produced = producer.wait()?;
    ensure!(unpacked.success() && produced.success(), "{command:?}: {produced}, tar: {unpacked}");
    Ok(())
}

fn finish_root(image: &Image, root: &Path) -> Result<()> {
    let busybox = root.join("usr/bin/busybox");
    let applets = Command::new(&busybox).arg("--list").output().context("busybox --list")?;
    for applet in String::from_utf8_lossy(&applets.stdout).lines() {
        if !root.join("usr/bin").join(applet).exists() && !root.join("usr/sbin").join(applet).exists() {
            symlink("busybox", root.join("usr/bin").join(applet))?;
        }
    }
    let mut passwd = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n".to_owned();
    let mut group = "root:x:0:\nnogroup:x:65534:\n".to_owned();
    for user in image.users {
        let fields: Vec<&str> = user.split(':').collect();
        let [name, _, _, gid, ..] = fields[..] else { bail!("malformed user {user}") };
        passwd.push_str(&format!("{user}\n"));
        group.push_str(&format!("{name}:x:{gid}:\n"));
    }
    fs::write(root.join("etc/passwd"), passwd)?;
    fs::write(root.join("etc/group"), group)?;
    for folder in image.folders {
        fs::create_dir_all(root.join(folder))?;
    }
    for (path, mode, text) in image.files {
        let path = root.join(path);
        fs::create_dir_all(path.parent().context("a file in a folder")?)?;
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(*mode))?;
    }
    run_command(Command::new("/sbin/ldconfig").arg("-r").arg(root), None)
}

/// One layer, a configuration and a manifest, as `docker save` has them.
fn pack(image: &Image, work: &Path, root: &Path, archive: &Path) -> Result<()> {
    let layer = work.join("layer.tar");
    run_command(
        Command::new("tar").args(["--sort=name", "--numeric-owner", "-cf"]).arg(&layer).arg("-C").arg(root).arg("."),
        None,
    )?;
    let sum = Command::new("sha256sum").arg(&layer).output()?;
    let digest =
        String::from_utf8_lossy(&sum.stdout).split_whitespace().next().context("sha256sum printed nothing")?.to_owned();
    let mut env = image.env.to_vec();
    if env.is_empty() {
        env.push("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    }
    let mut config = json!({"Env": env, "Entrypoint": image.entrypoint, "Cmd": image.cmd, "WorkingDir": "/"});
    if !image.stop_signal.is_empty() {
        config["StopSignal"] = image.stop_signal.into();
    }
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": config,
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
        "history": [{"created_by": "cargo xtask images"}],
    });
    let tag = format!("test.local/{}:1", image.name);
    let manifest = json!([{"Config": "config.json", "RepoTags": [tag], "Layers": ["layer.tar"]}]);
    fs::write(work.join("config.json"), config.to_string())?;
    fs::write(work.join("manifest.json"), manifest.to_string())?;
    let partial = archive.with_extension("partial");
    run_command(
        Command::new("tar").arg("-cf").arg(&partial).arg("-C").arg(work).args([
            "manifest.json",
            "config.json",
            "layer.tar",
        ]),
        None,
    )?;
    fs::rename(partial, archive)?;
    Ok(())
}
