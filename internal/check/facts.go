// SPDX-License-Identifier: Apache-2.0

package check

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/meshd/meshd/internal/cni"
	"github.com/meshd/meshd/internal/gossip"
	"github.com/meshd/meshd/internal/k3s"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
	"github.com/meshd/meshd/internal/netcfg/filter"
	"github.com/meshd/meshd/internal/state"
)

// Facts are the state of a host, as far as Evaluate needs it.
type Facts struct {
	Root    bool // this process is root
	Capable bool // this process may configure the network
	Running bool // a daemon runs
	Nodes   int  // how many nodes the daemon knows, including this one; 0 if it was not asked

	Config []error // errors of the secret or the host name

	State         State
	Kernel        Kernel
	ForeignDevice bool   // a link that is not ours has our device's name
	ForeignVXLAN  bool   // a link that is not ours has our VXLAN device's name
	Links         []Link // all links of the host
	Host          netcfg.Facts
	Ports         []Port
	Filters       []filter.Table
	CNI           CNI
	K3s           k3s.Settings
	K3sCert       k3s.Certificate
	Unit          Unit
	Written       []Directory
	Overlay       []netip.Addr     // this node's addresses, if the daemon was asked
	InternalIPs   []netip.Prefix   // this node's, if the daemon was asked
	Endpoints     []netip.AddrPort // of this node's peers, if the daemon was asked
	Neighbors     []netip.Addr     // nodes reached over the LAN, if the daemon was asked
	Members       []Member         // of etcd on other nodes, if the daemon was asked
	ClockRead     bool
	ClockSynced   bool
	Reach         []Reach

	Unread []Unread
}

// Member is a member of etcd on another node.
type Member struct {
	Node    string
	Timings mesh.EtcdTimings // as configured there
	RTT     time.Duration    // to the node; 0 if it is not known
}

// Unread is something that could not be read.
type Unread struct {
	What string
	Err  error
}

// State is the state directory.
type State struct {
	Path         string
	MachineIDErr error // the host has no machine ID, to which the identity is bound
	Read         bool  // its files could be read
	Seen         state.Inspection
	Err          error // why its files can't be used
	WriteErr     error // why it can't be written to
	Free         int64 // bytes; -1 if not known
}

// Kernel is what the kernel and its tools support.
type Kernel struct {
	WireGuard    bool
	TUN          bool
	NFT          bool  // the program nft is installed
	FirewallErr  error // why the kernel or nft refuse our rules; nil also if they were not tried
	BridgeFilter bool  // br_netfilter is loaded or can be loaded
	IPv6         bool  // IPv6 is enabled, also on new links
}

// Link is a network device.
type Link struct {
	Name string
	Kind string
}

// Port is a port that meshd listens on.
type Port struct {
	Network string     // udp | tcp
	Address netip.Addr // as configured; invalid for all
	Port    uint16
	Key     string // of the configuration
	State   PortState
	Process Process // that uses it
	Ours    bool    // the daemon or one of our devices uses it
}

// Process is a process of this host. PID is 0 if it is not known.
type Process struct {
	Name string
	PID  int
}

func (p Process) String() string {
	if p.PID == 0 {
		return "another program"
	}
	return fmt.Sprintf("%s (pid %d)", p.Name, p.PID)
}

// PortState is the result of a trial to listen on a port.
type PortState string

// The states of a port.
const (
	PortFree    PortState = "free"
	PortTaken   PortState = "taken"
	PortForeign PortState = "foreign" // the address does not belong to this host
)

// CNI is the state of the pods' network.
type CNI struct {
	Config     cni.Config
	Status     cni.Status
	Read       bool
	Unwritable []string // directories that meshd must write to but can't
}

// Reach is a host of the configuration: one that meshd connects to, or a name of this host
// that others connect to.
type Reach struct {
	Key        string // of the configuration
	Host       string
	Port       uint16 // TCP; 0 if the name must only resolve
	Proxy      string // the HTTP proxy through which it was tried; "" for none
	ResolveErr error
	DialErr    error
	Foreign    bool // it speaks TLS with a certificate that is not a node's
	// Own is whether the host is this one: it was not tried.
	Own bool
	// Looked is what the node there shows, if it was greeted without LookErr.
	Looked  gossip.Looked
	LookErr error
}
