// SPDX-License-Identifier: Apache-2.0

// Package bugreport packs what somebody else needs to find out why a node does not do what it should: what
// the daemon says, its log, and the state of the host's network. Secrets are left out or replaced.
package bugreport

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"strings"
	"time"
)

// Options say what goes into a report.
type Options struct {
	Name     string // of the directory in the archive
	Config   string // path of the configuration file
	StateDir string
	RunDir   string
	// SecretFile is the path of the file with the mesh's secrets, "" if it is not known.
	SecretFile string
	// Entries are further files of the report. If one returns an error, that is its content.
	Entries []Entry
	// Run runs a command of the host; nil for Command.
	Run func(ctx context.Context, name string, args ...string) ([]byte, error)
	Now time.Time
}

// Entry is a file of the report.
type Entry struct {
	Name string
	Get  func(ctx context.Context) ([]byte, error)
}

// commandTimeout bounds the time of one command, and maxOutput its output in bytes.
const (
	commandTimeout = 20 * time.Second
	maxOutput      = 8 << 20
)

// commands are those of the host. Not among them: what shows how k3s was started, since its token may be
// on the command line.
var commands = []struct{ file, line string }{
	{"host/system.txt", "uname -a"},
	{"host/release.txt", "cat /etc/os-release"},
	{"host/clock.txt", "timedatectl"},
	{"host/disks.txt", "df -h"},
	{"host/memory.txt", "free -m"},
	{"host/services.txt", "systemctl show meshd meshd-online meshd-drain k3s k3s-agent systemd-networkd NetworkManager firewalld ufw docker -p Id,LoadState,ActiveState,SubState,Result,NRestarts,ExecMainStatus,ActiveEnterTimestamp"},
	{"host/unit.txt", "systemctl cat meshd meshd-online meshd-drain"},
	{"host/log.txt", "journalctl -u meshd -u meshd-online -u meshd-drain --no-pager -n 10000 -o short-iso-precise"},
	{"network/addresses.txt", "ip -d address"},
	{"network/routes.txt", "ip route show table all"},
	{"network/routes6.txt", "ip -6 route show table all"},
	{"network/rules.txt", "ip rule"},
	{"network/rules6.txt", "ip -6 rule"},
	{"network/neighbors.txt", "ip neigh"},
	{"network/fdb.txt", "bridge fdb"},
	{"network/counters.txt", "ip -s link"},
	{"network/sockets.txt", "ss -tulpn"},
	{"network/wireguard.txt", "wg show"},
	{"network/nft.txt", "nft list ruleset"},
	{"network/iptables.txt", "iptables-save"},
	{"network/ip6tables.txt", "ip6tables-save"},
	{"network/parameters.txt", "sysctl -a --pattern ^net\\.(ipv[46]\\.(conf|neigh|ip_forward|icmp|tcp_mtu|fib)|netfilter|bridge|core\\.[rw]mem)"},
	{"network/resolver.txt", "cat /etc/resolv.conf"},
	{"cni/files.txt", "ls -l /etc/cni/net.d /opt/cni/bin /usr/lib/cni"},
	{"cni/conflist.txt", "cat /etc/cni/net.d/10-meshd.conflist"},
}

// readme is the first file of a report.
const readme = `This is what meshd bugreport has found on a host: what the daemon says, its log, and
the state of the host's network.

The secret of the mesh, the private keys of this node, and what looks like a password
are not in it: "` + hidden + `" stands in their place. Names and addresses of hosts, also of
others, are. Read it before you give it to somebody: tar -xzf FILE
`

// Write writes a report to w: a tar archive, compressed with gzip. What could not be found out is an
// error in the report. It returns an error if it can't write, or does not know the secrets that it has to leave
// out.
func Write(ctx context.Context, w io.Writer, o Options) error {
	s, err := newScrubber(o)
	if err != nil {
		return err
	}
	if o.Run == nil {
		o.Run = Command
	}
	zipped := gzip.NewWriter(w)
	archive := tar.NewWriter(zipped)
	for _, e := range o.entries() {
		content, err := e.Get(ctx)
		if err != nil {
			content = append(content, "\nerror: "+err.Error()+"\n"...)
		}
		content = s.scrub(content)
		header := &tar.Header{Name: path.Join(o.Name, e.Name), Mode: 0o600, Size: int64(len(content)), ModTime: o.Now}
		if err := archive.WriteHeader(header); err != nil {
			return fmt.Errorf("write report: %w", err)
		}
		if _, err := archive.Write(content); err != nil {
			return fmt.Errorf("write report: %w", err)
		}
	}
	if err := errors.Join(archive.Close(), zipped.Close()); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}

// entries returns all files of the report.
func (o Options) entries() []Entry {
	all := []Entry{
		{"README.txt", func(context.Context) ([]byte, error) { return []byte(readme), nil }},
		{"meshd.yaml", func(context.Context) ([]byte, error) { return os.ReadFile(o.Config) }},
	}
	all = append(all, o.Entries...)
	for _, c := range commands {
		all = append(all, Entry{c.file, func(ctx context.Context) ([]byte, error) {
			args := strings.Fields(c.line)
			out, err := o.Run(ctx, args[0], args[1:]...)
			return append([]byte("$ "+c.line+"\n"), out...), err
		}})
	}
	return all
}

// Command runs a command of the host, and returns what it prints.
func Command(ctx context.Context, name string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	var out limited
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = time.Second // for children that keep the output open
	err := cmd.Run()
	return out.kept, err
}

// limited keeps the beginning of what is written to it.
type limited struct{ kept []byte }

// Write implements io.Writer.
func (l *limited) Write(b []byte) (int, error) {
	l.kept = append(l.kept, b[:min(len(b), maxOutput-len(l.kept))]...)
	return len(b), nil
}
