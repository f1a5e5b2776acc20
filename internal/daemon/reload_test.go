// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	"github.com/meshd/meshd/internal/config"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
)

// A reload that fails tells systemd that it has begun and ended, as sd_notify(3)
// wants it, and changes nothing.
func TestReloadRefused(t *testing.T) {
	dir := t.TempDir()
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	t.Setenv("NOTIFY_SOCKET", filepath.Join(dir, "notify"))
	path := filepath.Join(dir, "meshd.yaml")
	if err := os.WriteFile(path, []byte("secret-file: /nowhere\nnodes: {}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	before := parse(t, "node: {name: a}")
	d := &daemon{opt: Options{Config: path}, cfg: before, log: newJournal(slog.New(slog.DiscardHandler)), services: hostServices{}}

	d.reload()
	for _, want := range []string{`^RELOADING=1\nMONOTONIC_USEC=[1-9]\d*\n?$`, `^READY=1$`} {
		buf := make([]byte, 256)
		n, err := socket.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		if !regexp.MustCompile(want).Match(buf[:n]) {
			t.Errorf("told systemd %q, want %s", buf[:n], want)
		}
	}
	if diff := cmp.Diff(before, d.cfg, compareNet); diff != "" {
		t.Errorf("configuration (-before +after):\n%s", diff)
	}
	if len(d.reloadProblems) != 2 {
		t.Errorf("problems: got %+v, want one for the key, one for the secret", d.reloadProblems)
	}
}

func TestReloadProblems(t *testing.T) {
	bad := &config.Error{File: "/etc/meshd.yaml", Line: 3, Key: "nodes", Problem: "unknown key", Advice: "did you mean node?"}
	tests := []struct {
		name string
		err  error
		want []mesh.Problem
	}{
		{"none", nil, nil},
		{"mistakes in the file", errors.Join(bad, bad), []mesh.Problem{
			{Text: "not reloaded: /etc/meshd.yaml:3: nodes: unknown key", Advice: "did you mean node?; then run: systemctl reload meshd"},
			{Text: "not reloaded: /etc/meshd.yaml:3: nodes: unknown key", Advice: "did you mean node?; then run: systemctl reload meshd"},
		}},
		{"needs a restart", restartError{[]string{"node.name", "gossip.bind"}}, []mesh.Problem{
			{Text: "not reloaded: new values of node.name, gossip.bind take effect only after a restart", Advice: "run: systemctl restart meshd; or put the old values back into /etc/meshd.yaml, and run: systemctl reload meshd"},
		}},
		{"anything else", os.ErrPermission, []mesh.Problem{
			{Text: "not reloaded: permission denied", Advice: "see that /etc/meshd.yaml can be read, then run: systemctl reload meshd"},
		}},
	}
	for _, tt := range tests {
		for i := range tt.want {
			tt.want[i].Kind, tt.want[i].Node = ProblemConfiguration, "a"
		}
		if diff := cmp.Diff(tt.want, reloadProblems("a", "/etc/meshd.yaml", tt.err)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

// TestCheckRanges checks that ranges in which the host's own LAN lies are refused, all at
// once, with ranges that would do; and that those of others of its networks are not.
func TestCheckRanges(t *testing.T) {
	cfg := parse(t, "node: {name: a}")
	lan := func(p string) mesh.AttachedNetwork {
		return mesh.AttachedNetwork{Prefix: netip.MustParsePrefix(p), Link: "eth0", LAN: true}
	}
	facts := netcfg.Facts{Nearby: mesh.Nearby{Attached: []mesh.AttachedNetwork{lan("10.42.3.0/24"), lan("10.4.0.0/20"), lan("192.168.1.0/24")}}}
	err := checkRanges("/etc/meshd.yaml", cfg, facts)
	for _, want := range []string{"cluster.overlay: 10.4.0.0/16 overlaps 10.4.0.0/20", "such as 10.5.0.0/16", "cluster.pods: 10.42.0.0/16 overlaps 10.42.3.0/24, to which this host is attached by eth0", "such as 10.44.0.0/16"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q in it", err, want)
		}
	}
	var bad *config.Error
	if !errors.As(err, &bad) {
		t.Errorf("got %T, want a configuration error, which a restart does not mend", err)
	}
	behindRouter, tunnel := lan("10.42.3.0/24"), lan("10.42.4.0/24")
	behindRouter.Routed, tunnel.LAN, tunnel.Link = true, false, "tun0"
	facts.Nearby.Attached = []mesh.AttachedNetwork{behindRouter, tunnel}
	if err := checkRanges("/etc/meshd.yaml", cfg, facts); err != nil {
		t.Errorf("without a LAN there: got %v, want none", err)
	}
}

// TestLANInTheRanges checks that a LAN in any of the cluster's ranges keeps a node from its
// first start, and that a node with a claim starts and reports it.
func TestLANInTheRanges(t *testing.T) {
	for key, lan := range map[string]string{"cluster.overlay": "10.4.7.0/24", "cluster.pods": "10.42.3.0/24", "cluster.services": "10.43.9.0/24"} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, standsAlone)
			w.kernel.facts.Nearby.Attached = []mesh.AttachedNetwork{{Prefix: netip.MustParsePrefix(lan), Link: "eth0", LAN: true}}
			w.reset()
			d := newDaemon(Options{Config: "/etc/meshd.yaml", Logger: slog.New(slog.DiscardHandler)}, w.cfg)
			d.disk.dir, d.kernel = w.disk, w.kernel
			if err := d.checkFirstStart(t.Context()); err == nil || !strings.Contains(err.Error(), key) {
				t.Errorf("%s, first start: got %v, want an error", key, err)
			}
			w.disk.node.Claim = mesh.Claim{Slot: 1}
			if err := d.checkFirstStart(t.Context()); err != nil {
				t.Errorf("%s, with a claim: got %v, want none", key, err)
			}
			w.start()
			w.pass(resync)
			if problems := w.d.Status().Problems; !slices.ContainsFunc(problems, func(p mesh.Problem) bool {
				return p.Kind == mesh.ProblemRange && strings.Contains(p.Text, key) && strings.Contains(p.Text, lan)
			}) {
				t.Errorf("%s: got problems %v, want one about %s", key, problems, lan)
			}
			w.end()
		})
	}
}
