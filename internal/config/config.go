// SPDX-License-Identifier: Apache-2.0

// Package config parses /etc/meshd.yaml into a typed [Config]. It is strict, because a
// setting that is silently ignored costs more time than one that is refused: unknown keys,
// duplicate keys, values of the wrong type, and settings that contradict each other are
// errors. All errors are reported together, each as an [Error] with its file, line and key,
// and with what to write instead:
//
//	meshd.yaml:12: cluster.pods[0]: 10.42.0.1/16 has host bits set: write 10.42.0.0/16
//
// The table in keys.go lists every key with its field and the function that parses it.
// decode.go walks the YAML tree and uses that table; check.go compares settings with each
// other. Only [Load] and [ReadSecrets] access the file system.
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

// DefaultGossipPort is the default UDP and TCP port of gossip.
const DefaultGossipPort = 7946

// maxSize bounds the configuration file, in bytes. Real files have a few thousand.
const maxSize = 1 << 20

// Config is the content of /etc/meshd.yaml, with defaults filled in.
type Config struct {
	SecretFile string
	Secrets    Secrets    // set only by Load; at least one
	Join       []HostPort // nodes to contact first
	Node       Node
	Cluster    mesh.Cluster
	WireGuard  WireGuard
	Gossip     Gossip
	Relay      Relay
	Probe      Probe
	CNI        CNI
	K3s        K3s
	Metrics    Metrics

	// Trusted are the nodes that are trusted if Cluster.Trust is mesh.TrustList. This node itself
	// need not be among them.
	Trusted []mesh.ID
	// ForgetAfter is how long a node may be absent before it loses its slot.
	ForgetAfter time.Duration
}

// Node holds the settings of this node.
type Node struct {
	Name       string       // "" for the host name, which Load fills in
	Location   string       // "" for none
	Endpoint   HostPort     // zero: found automatically
	InternalIP netip.Prefix // the address with the length of its network; invalid: found automatically; or mesh.NoInternalIP
	Gateway    mesh.GatewayPreference
	Exit       bool   // clients may reach the internet through this node
	Encryption string // EncryptionAuto | EncryptionRequired
	Relay      mesh.RelayPreference
	// PortMapping says whether the router is asked for mappings: PortMappingAuto | PortMappingOff.
	PortMapping string

	// Keepalive is WireGuard's persistent keepalive, in whole seconds. Nil means the default
	// on paths that a NAT's mapping holds and none elsewhere, zero means none.
	Keepalive *time.Duration

	PodCIDR            []netip.Prefix // name a slot, at most one per family; empty: claim a free slot
	AllowedLocationIPs []netip.Prefix

	// Links are the files of links to other clusters, LinkAccess what these may reach here. The name of a
	// file, without .conf, is that of the device, and of the other cluster.
	Links      []string
	LinkAccess []mesh.Access
}

// Values of node.encryption: whether packets may cross a LAN in plain text.
const (
	EncryptionAuto     = "auto"     // yes, unless cluster.mode in this file is full
	EncryptionRequired = "required" // no
)

// Values of node.port-mapping: whether the router of a host without a public address is asked to
// let others in.
const (
	PortMappingAuto = "auto" // yes, unless node.endpoint is set
	PortMappingOff  = "off"
)

// Encrypted reports whether this node's packets must be encrypted on a LAN, whatever the
// settings of other nodes are.
func (c Config) Encrypted() bool {
	return c.Node.Encryption == EncryptionRequired || c.Cluster.Mode == mesh.ModeFull
}

// TrustsList reports whether only nodes of Trusted are trusted.
func (c Config) TrustsList() bool { return c.Cluster.Trust == mesh.TrustList }

// StaticSlot returns the slot that node.pod-cidr names, or mesh.None.
func (c Config) StaticSlot() int {
	for _, p := range c.Node.PodCIDR {
		if slot, ok := c.Cluster.SlotOf(p); ok {
			return slot
		}
	}
	return mesh.None
}

// WireGuard holds the settings of the WireGuard device.
type WireGuard struct {
	Interface      string
	ListenPort     int
	MTU            int    // bytes; 0: found automatically
	Implementation string // auto | kernel | userspace
}

// Gossip holds the addresses of this node's gossip.
type Gossip struct {
	Bind      netip.AddrPort // the Addr is invalid for all addresses of the host
	Advertise HostPort       // zero: found automatically
}

// Relay holds the settings for carrying other nodes' datagrams.
type Relay struct {
	MaxRate int // bytes a second that are forwarded; 0 for no limit
	// Listen is where streams are accepted that carry datagrams, besides gossip's port; zero for
	// nowhere. The Addr is invalid for all addresses of the host.
	Listen netip.AddrPort
}

// Probe holds the settings for probing a location's gateways. One is asked every Interval,
// and counts as down after Misses requests without an answer.
type Probe struct {
	Interval time.Duration
	Misses   int
}

// CNI holds the paths where the container runtime looks for its network.
type CNI struct {
	Enabled      bool
	ConfDir      string
	BinDir       string
	PluginSource string
	Bridge       string
}

// K3s holds the settings for k3s itself; CNI holds those for its pods' network.
type K3s struct {
	WriteConfig bool   // write the drop-in that makes k3s use the mesh
	Role        string // RoleAuto | RoleServer | RoleAgent
	Etcd        mesh.EtcdTimings
}

// Values of k3s.role: the role of k3s on this host.
const (
	RoleAuto   = "auto" // the one that is installed
	RoleServer = "server"
	RoleAgent  = "agent"
)

// Metrics holds the address of the server for metrics and health.
type Metrics struct {
	Listen netip.AddrPort // zero for none
}

// HostPort is a host, as an IP address or a name, and a port.
type HostPort struct {
	Host string
	Port uint16
}

// String returns host:port in the form for net.Dial, "" for the zero HostPort.
func (h HostPort) String() string {
	if h == (HostPort{}) {
		return ""
	}
	return net.JoinHostPort(h.Host, strconv.Itoa(int(h.Port)))
}

// defaultAccess is what other clusters may reach, as clients may.
func defaultAccess() []mesh.Access {
	return []mesh.Access{{Target: mesh.AccessPods}, {Target: mesh.AccessServices}, {Target: mesh.AccessNodes}}
}

// defaults returns the configuration of a file without any optional keys.
func defaults() Config {
	return Config{
		Node: Node{Gateway: mesh.GatewayAuto, Encryption: EncryptionAuto, Relay: mesh.RelayAuto, PortMapping: PortMappingAuto, LinkAccess: defaultAccess()},
		Cluster: mesh.Cluster{
			Name:          "default",
			Generation:    1,
			Trust:         mesh.TrustOpen,
			Mode:          mesh.ModeFull,
			Encapsulation: mesh.EncapsulationAlways,
			Gateways:      1,
			// These are the defaults of k3s: the ranges of pods and Services, the resolver's
			// address and domain, and the length of a pod CIDR.
			Overlay:   []netip.Prefix{netip.MustParsePrefix("10.4.0.0/16")},
			Pods:      []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")},
			PodPrefix: []int{podBits4},
			Services:  []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16")},
			DNS:       mesh.DNS{Domain: "cluster.local"},
		},
		WireGuard: WireGuard{Interface: "meshd0", ListenPort: 51820, Implementation: "auto"},
		Gossip:    Gossip{Bind: netip.AddrPortFrom(netip.Addr{}, DefaultGossipPort)},
		Probe:     Probe{Interval: 250 * time.Millisecond, Misses: 4},
		// Longer than any repair or holiday, but short enough to free addresses again.
		ForgetAfter: 30 * 24 * time.Hour,
		CNI: CNI{
			Enabled:      true,
			ConfDir:      "/etc/cni/net.d",
			BinDir:       "/opt/cni/bin",
			PluginSource: "/usr/lib/cni",
			Bridge:       "kube-bridge",
		},
		K3s:     K3s{Role: RoleAuto, Etcd: mesh.EtcdLAN},
		Metrics: Metrics{Listen: netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 9586)},
	}
}

// Default length of a node's pod CIDR: that of Kubernetes for IPv4, and the usual subnet
// length for IPv6.
const (
	podBits4 = 24
	podBits6 = 64
)

// Load reads the configuration file and the secret file that it names. A node without a
// name gets the host name, in lower case like in k3s. The errors are *Error, joined.
func Load(path string) (Config, error) {
	cfg, broken, err := Inspect(path)
	if len(broken) > 0 {
		return Config{}, errors.Join(broken...)
	}
	return cfg, err
}

// Inspect is like Load, but also returns the configuration if only what it refers to is
// broken, the secret or the host name. These errors are in broken.
func Inspect(path string) (cfg Config, broken []error, err error) {
	data, err := readFile(path)
	if err != nil {
		return Config{}, nil, err
	}
	d := decode(path, data)
	sound := len(d.errs) == 0
	if err := d.nameNode(); err != nil {
		return Config{}, nil, err
	}
	var secretErrs []*Error
	if d.config.SecretFile != "" {
		secrets, errs := readSecrets(d.config.SecretFile)
		d.config.Secrets = secrets
		for _, e := range errs {
			if e.Line == 0 { // about the whole file: report it at the line that names the file
				d.report("secret-file", e.File+" "+e.Problem, e.Advice)
			} else {
				secretErrs = append(secretErrs, e)
			}
		}
	}
	errs := d.errors(secretErrs)
	if !sound {
		return Config{}, nil, errors.Join(errs...)
	}
	return d.config, errs, nil
}

// Parse parses a configuration; name is the file name for errors. It reads no other file,
// so Secrets is empty, and so is the node's name if the configuration has none. The errors
// are *Error with a line, joined.
func Parse(name string, data []byte) (Config, error) {
	return decode(name, data).result()
}

// Complete is Parse, and gives a node without a name that of the host, like Load.
func Complete(name string, data []byte) (Config, error) {
	d := decode(name, data)
	if err := d.nameNode(); err != nil {
		return Config{}, err
	}
	return d.result()
}

// nameNode gives a node without a name that of the host.
func (d *decoder) nameNode() error {
	if d.config.Node.Name != "" || !d.sound("node.name") {
		return nil
	}
	host, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("read host name: %w", err)
	}
	d.useHostName(host)
	return nil
}

// readFile reads a file up to one byte beyond maxSize.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &Error{File: path, Problem: "does not exist", Advice: "run meshd init on the first host of a mesh, and meshd join on the others; or write it, three lines are enough", cause: err}
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

// useHostName sets the node's name to the host name.
func (d *decoder) useHostName(host string) {
	name, err := nodeName(strings.ToLower(host))
	if err != nil {
		d.report("node.name", fmt.Sprintf("is not set, and the host name %s can't stand in", quote(host)),
			"set node.name to a name of "+labelRule+", or give the host one: hostnamectl set-hostname NAME")
		d.errs[len(d.errs)-1].Transient = true
		return
	}
	d.config.Node.Name = name
}
