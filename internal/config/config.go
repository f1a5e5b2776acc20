// SPDX-License-Identifier: Apache-2.0

// Package config turns /etc/meshd.yaml into a typed [Config]. It is strict,
// because a setting that is silently ignored costs more time than one that is
// refused: unknown keys, keys written twice, values of another kind than asked
// for, and settings that contradict each other are errors. All of them are
// reported at once, each as an [Error] with its file, line and key, and with
// what to write instead:
//
//	meshd.yaml:12: cluster.pods[0]: 10.42.0.1/16 has host bits set: write 10.42.0.0/16
//
// The way through it: the table in keys.go names every key, its field and the
// function that parses it; decode.go walks the YAML tree along that table;
// check.go compares settings with each other. Only [Load] and [ReadSecrets]
// touch the file system.
package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/meshd/meshd/internal/mesh"
)

// DefaultGossipPort is the UDP and TCP port of gossip where none is written.
const DefaultGossipPort = 7946

// maxSize bounds the configuration file, in bytes. A real one has a few
// thousand.
const maxSize = 1 << 20

// Config is what /etc/meshd.yaml says, with defaults filled in.
type Config struct {
	SecretFile string
	Secrets    Secrets    // only from Load; at least one
	Join       []HostPort // nodes to ask first
	Node       Node
	Cluster    mesh.Cluster
	WireGuard  WireGuard
	Gossip     Gossip
	Probe      Probe
	CNI        CNI
	K3s        K3s
	Metrics    Metrics

	// Trusted are the nodes whose word counts if Cluster.Trust is TrustList. This
	// node itself need not be among them.
	Trusted []mesh.ID
	// ForgetAfter is how long a node may be absent before it loses its slot.
	ForgetAfter time.Duration
}

// Whose word counts, as cluster.trust has it.
const (
	TrustOpen = "open" // of whoever has the secret
	TrustList = "list" // of those in cluster.trusted
)

// Node holds the settings of this node.
type Node struct {
	Name       string       // "" for the host name until Load has filled it in
	Location   string       // "" for a node that stands alone
	Endpoint   HostPort     // zero: to be found out
	InternalIP netip.Prefix // the address with its network's length; invalid: to be found out
	Gateway    mesh.GatewayWish
	Encryption string // EncryptionAuto | EncryptionRequired

	// Keepalive is how often peers are spoken to, in whole seconds. Nil means
	// only from behind NAT, zero means never.
	Keepalive *time.Duration

	PodCIDR            []netip.Prefix // name a slot, at most one a family; empty: to be claimed
	AllowedLocationIPs []netip.Prefix
}

// Whether packets may cross a LAN in plain text, as node.encryption has it.
const (
	EncryptionAuto     = "auto"     // never where this file's cluster.mode is full
	EncryptionRequired = "required" // never
)

// Encrypted reports whether no settings of others may have this node's packets
// cross a LAN in plain text.
func (c Config) Encrypted() bool {
	return c.Node.Encryption == EncryptionRequired || c.Cluster.Mode == mesh.ModeFull
}

// WireGuard holds the settings of the WireGuard device.
type WireGuard struct {
	Interface      string
	ListenPort     int
	MTU            int    // bytes; 0: to be found out
	Implementation string // auto | kernel | userspace
}

// Gossip says where this node gossips.
type Gossip struct {
	Bind      netip.AddrPort // the Addr is invalid for all addresses of the host
	Advertise HostPort       // zero: to be found out
}

// Probe says how a location's gateways are watched: one that has not answered
// Misses times, asked every Interval, is taken for down.
type Probe struct {
	Interval time.Duration
	Misses   int
}

// CNI says where the container runtime looks for its network.
type CNI struct {
	Enabled      bool
	ConfDir      string
	BinDir       string
	PluginSource string
	Bridge       string
}

// K3s says what meshd does for k3s, beside the pods' network.
type K3s struct {
	WriteConfig bool   // writes the drop-in that puts k3s on the mesh
	Role        string // RoleAuto | RoleServer | RoleAgent
}

// What k3s is on this host, as k3s.role has it.
const (
	RoleAuto   = "auto" // what it is installed as
	RoleServer = "server"
	RoleAgent  = "agent"
)

// Metrics says where metrics and health are served.
type Metrics struct {
	Listen netip.AddrPort // zero for nowhere
}

// HostPort is a host, as an IP address or a name, and a port.
type HostPort struct {
	Host string
	Port uint16
}

// String returns host:port as net.Dial takes it, "" for the zero HostPort.
func (h HostPort) String() string {
	if h == (HostPort{}) {
		return ""
	}
	return net.JoinHostPort(h.Host, strconv.Itoa(int(h.Port)))
}

// defaults is the configuration of a file that names nothing but a secret.
func defaults() Config {
	return Config{
		Node: Node{Gateway: mesh.GatewayAuto, Encryption: EncryptionAuto},
		Cluster: mesh.Cluster{
			Name:          "default",
			Generation:    1,
			Trust:         TrustOpen,
			Mode:          mesh.ModeFull,
			Encapsulation: mesh.EncapsulationAlways,
			Gateways:      1,
			// The ranges of pods and Services are those of k3s, and so are the
			// resolver's address, domain and the length of a pod CIDR.
			Overlay:   []netip.Prefix{netip.MustParsePrefix("10.4.0.0/16")},
			Pods:      []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")},
			PodPrefix: []int{podBits4},
			Services:  []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16")},
			DNS:       mesh.DNS{Domain: "cluster.local"},
		},
		WireGuard: WireGuard{Interface: "meshd0", ListenPort: 51820, Implementation: "auto"},
		Gossip:    Gossip{Bind: netip.AddrPortFrom(netip.Addr{}, DefaultGossipPort)},
		Probe:     Probe{Interval: 250 * time.Millisecond, Misses: 4},
		// Longer than any repair or holiday, and short enough that addresses come back.
		ForgetAfter: 30 * 24 * time.Hour,
		CNI: CNI{
			Enabled:      true,
			ConfDir:      "/etc/cni/net.d",
			BinDir:       "/opt/cni/bin",
			PluginSource: "/usr/lib/cni",
			Bridge:       "kube-bridge",
		},
		K3s:     K3s{Role: RoleAuto},
		Metrics: Metrics{Listen: netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 9586)},
	}
}

// Length of a node's pod CIDR where none is written: Kubernetes' own default
// for IPv4, and for IPv6 the length of every other subnet.
const (
	podBits4 = 24
	podBits6 = 64
)

// Load reads the configuration file and the secret file that it names. A node
// without a name gets the host's, in lower case as k3s has it. The errors are
// *Error, joined.
func Load(path string) (Config, error) {
	data, err := readFile(path)
	if err != nil {
		return Config{}, err
	}
	d := decode(path, data)
	if d.config.Node.Name == "" && d.sound("node.name") {
		host, err := os.Hostname()
		if err != nil {
			return Config{}, fmt.Errorf("read host name: %w", err)
		}
		d.takeHostName(host)
	}
	var elsewhere []*Error
	if d.config.SecretFile != "" {
		secrets, errs := readSecrets(d.config.SecretFile)
		d.config.Secrets = secrets
		for _, e := range errs {
			if e.Line == 0 { // about the file: the line that names it is to blame
				d.report("secret-file", e.File+" "+e.Problem, e.Advice)
			} else {
				elsewhere = append(elsewhere, e)
			}
		}
	}
	return d.result(elsewhere)
}

// Parse reads a configuration from data; name stands for the file in errors.
// It touches no file, so Secrets stays empty, and so does the node's name
// where the file has none. The errors are *Error with a line, joined.
func Parse(name string, data []byte) (Config, error) {
	return decode(name, data).result(nil)
}

// readFile reads a file up to one byte beyond maxSize.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &Error{File: path, Problem: "does not exist", Advice: "write it; three lines are enough for a first node", cause: err}
	} else if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	return data, nil
}

// takeHostName names the node after the host.
func (d *decoder) takeHostName(host string) {
	name, err := label(strings.ToLower(host))
	if err != nil {
		d.report("node.name", fmt.Sprintf("is not set, and the host name %s can't stand in", quote(host)), "set node.name to a name of "+labelRule)
		return
	}
	d.config.Node.Name = name
}
