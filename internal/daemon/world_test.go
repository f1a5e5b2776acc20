// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/cni"
	"github.com/meshd/meshd/internal/config"
	"github.com/meshd/meshd/internal/gossip"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
	"github.com/meshd/meshd/internal/probe"
	"github.com/meshd/meshd/internal/state"
)

// world is a daemon on a host in memory. It needs no root, and its time is that of a bubble
// of testing/synctest. The loop, its timers and its channels are the real ones. The trace
// records what the loop does.
type world struct {
	t *testing.T
	*trace
	dir string // for configuration files

	kernel  *fakeKernel
	network *fakeNetwork
	disk    *fakeDisk
	paths   *fakePaths
	ports   *fakePorts
	relay   *fakeRelay
	streams *fakeStreams
	prober  *fakeProber

	cfg    config.Config // as it was at the start
	d      *daemon
	reload chan os.Signal
	log    slog.Handler
	stop   context.CancelFunc
	ended  chan error
}

// begin is when all scenarios begin: after the release, unlike the year 2000, in which each
// bubble begins.
var begin = time.Unix(1_800_000_000, 0)

// newWorld makes a host on which no daemon has run. Extra is the end of the configuration
// file.
func newWorld(t *testing.T, extra string) *world {
	t.Helper()
	time.Sleep(time.Until(begin))
	w := &world{t: t, log: slog.DiscardHandler, trace: &trace{names: make(map[mesh.ID]string)}, dir: t.TempDir()}
	for _, name := range cni.PluginNames() {
		w.write(filepath.Join("plugins", name), "#!", 0o755)
	}
	w.write("secret", base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{1}, 32)), 0o600)
	w.configure(extra)
	var err error
	if w.cfg, err = config.Load(filepath.Join(w.dir, "meshd.yaml")); err != nil {
		t.Fatal(err)
	}
	w.disk = &fakeDisk{trace: w.trace, node: state.Node{Claim: mesh.Claim{Slot: mesh.None}}}
	w.disk.identity = state.Identity{Key: identityKey(0), WireGuard: wgtypes.Key{31: 64}}
	w.names[w.disk.identity.ID()] = "a1"
	w.kernel = &fakeKernel{trace: w.trace, events: make(chan struct{}, 1), met: make(map[wgtypes.Key]bool), facts: hostFacts("203.0.113.1")}
	w.kernel.kernel.Removed = func(key wgtypes.Key) { delete(w.kernel.met, key) }
	w.network = &fakeNetwork{trace: w.trace, changed: make(chan struct{}, 1), paths: make(chan struct{}, 1), orders: make(chan gossip.Call), view: mesh.View{Alone: true, JoinEmpty: true}}
	return w
}

// hostFacts returns the facts of a host with one public address.
func hostFacts(public string) netcfg.Facts {
	addr := netip.MustParseAddr(public)
	return netcfg.Facts{
		Addresses: []netip.Addr{addr}, MTU: 1500,
		Uplinks: []netcfg.Uplink{{Link: "eth0", Source: netip.PrefixFrom(addr, 24), MTU: 1500}},
	}
}

// lanFacts returns the facts of a host with one private address in 192.168.1.0/24.
func lanFacts(private string) netcfg.Facts {
	p := netip.MustParsePrefix(private)
	return netcfg.Facts{
		Addresses: []netip.Addr{p.Addr()}, MTU: 1500, Private: []netcfg.PrivateAddress{{Link: "eth0", Address: p, Default: true}},
		Uplinks:  []netcfg.Uplink{{Link: "eth0", Source: p, MTU: 1500, Gateway: netip.MustParseAddr("192.168.1.254")}},
		Attached: []netcfg.LAN{{Link: "eth0", Address: p}},
	}
}

func identityKey(i int) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{byte(i + 1)}, ed25519.SeedSize))
}

// configure writes the configuration file.
func (w *world) configure(extra string) {
	w.t.Helper()
	text := fmt.Sprintf("secret-file: %s/secret\n%s\n", w.dir, extra)
	if !strings.Contains(extra, "cni:") {
		text += fmt.Sprintf("cni: {conf-dir: %[1]s/net.d, bin-dir: %[1]s/bin, plugin-source: %[1]s/plugins}\n", w.dir)
	}
	w.write("meshd.yaml", text, 0o600)
}

// write writes a file below the test's directory.
func (w *world) write(name, content string, mode os.FileMode) {
	w.t.Helper()
	path := filepath.Join(w.dir, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), mode)); err != nil {
		w.t.Fatal(err)
	}
}

// start starts a daemon, as Run does.
func (w *world) start() {
	w.t.Helper()
	path := filepath.Join(w.dir, "meshd.yaml")
	var ctx context.Context
	ctx, w.stop = context.WithCancel(w.t.Context())
	w.reload, w.ended = make(chan os.Signal), make(chan error, 1)
	w.mark("start")
	d := newDaemon(Options{Config: path, Reload: w.reload, Logger: slog.New(w.log), Version: "test"}, w.cfg)
	d.disk.dir, d.kernel, d.gossip, d.services, d.resolver = w.disk, w.kernel, w.network, &fakeServices{w.trace, w.dir}, newResolver(ctx)
	d.servers = servers{
		control: fakeControl{w.trace},
		metrics: &fakeHTTP{trace: w.trace, name: "metricsServer"}, clients: &fakeHTTP{trace: w.trace, name: "clientServer"},
	}
	d.links.remove = func([]string) ([]string, error) { return nil, nil }
	if _, err := d.loadState("machine"); err != nil {
		w.t.Fatal(err)
	}
	w.network.start(d)
	w.prober = &fakeProber{trace: w.trace, changed: make(chan struct{}, 1), results: make(map[probe.Target]probe.Result)}
	w.paths = &fakePaths{trace: w.trace, changed: make(chan struct{}, 1)}
	w.relay = &fakeRelay{trace: w.trace}
	w.streams = &fakeStreams{trace: w.trace, changed: make(chan struct{}, 1)}
	w.ports = &fakePorts{trace: w.trace, changed: make(chan struct{}, 1)}
	d.prober, d.paths, d.streams, d.relay, d.ports = w.prober, w.paths, w.streams, w.relay, w.ports
	d.publish(d.status(turn{}), turn{})
	w.d = d
	go func() { w.ended <- d.loop(ctx) }()
	synctest.Wait()
}

// end stops the daemon, as systemd does.
func (w *world) end() {
	w.t.Helper()
	w.mark("SIGTERM")
	w.stop()
	if err := <-w.ended; err != nil {
		w.t.Errorf("the loop ended: %v", err)
	}
}

// pass lets time pass.
func (w *world) pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// hear changes what gossip knows, and lets a turn follow.
func (w *world) hear(change func(*mesh.View)) {
	w.network.change(change)
	w.pass(spacing)
}

// meet makes nodes alive and known.
func (w *world) meet(records ...mesh.Record) {
	for _, r := range records {
		w.names[r.ID()] = r.Name
	}
	w.hear(func(v *mesh.View) {
		for _, r := range records {
			v.Alive[r.ID()] = true
			v.Records = withRecord(v.Records, r)
		}
		v.Alone, v.Merged = false, true
	})
}

// signal sends SIGHUP.
func (w *world) signal() {
	w.mark("SIGHUP")
	w.reload <- os.Interrupt
	w.pass(spacing)
}

// command runs a command, and lets a turn follow.
func (w *world) command(line string, run func(ctx context.Context) error) {
	w.t.Helper()
	w.mark(line)
	if err := run(w.t.Context()); err != nil {
		w.t.Errorf("%s: %v", line, err)
	}
	w.pass(spacing)
}

// node returns the record of another node, which has a public address. Its WireGuard key is
// above ours, so that we start the handshake.
func (w *world) node(name string, number int, addr string) mesh.Record {
	return mesh.Record{
		Identity: identityKey(number).Public().(ed25519.PublicKey), Name: name, Sequence: 1, Instance: uint64(number),
		Key: wgtypes.Key(bytes.Repeat([]byte{0xff - byte(number)}, 32)), Settings: w.cfg.Cluster.Hash(), MTU: 1420, ListenPort: 51820, GossipPort: 7946,
		Claim:     mesh.Claim{Slot: number, Time: begin.Add(-time.Hour).UnixMilli(), Since: 1},
		Endpoints: []mesh.Endpoint{{Host: addr, Port: 51820, Source: mesh.EndpointOwn}},
	}
}

func withRecord(records []mesh.Record, r mesh.Record) []mesh.Record {
	records = slices.DeleteFunc(slices.Clone(records), func(o mesh.Record) bool { return o.ID() == r.ID() })
	records = append(records, r)
	slices.SortFunc(records, func(a, b mesh.Record) int { return a.ID().Compare(b.ID()) })
	return records
}

func fire(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
