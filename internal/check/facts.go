// SPDX-License-Identifier: Apache-2.0

package check

import (
	"net/netip"

	"github.com/meshd/meshd/internal/cni"
	"github.com/meshd/meshd/internal/k3s"
	"github.com/meshd/meshd/internal/netcfg"
	"github.com/meshd/meshd/internal/netcfg/filter"
	"github.com/meshd/meshd/internal/state"
)

// Facts are what there is on a host, as far as Judge wants to know.
type Facts struct {
	Root    bool // this process is root
	Capable bool // this process may do what meshd has to
	Running bool // a daemon runs
	Nodes   int  // how many nodes the daemon knows, with this one; 0 if it was not asked

	Config []error // what is wrong with the secret or the host name

	State         State
	Kernel        Kernel
	ForeignDevice bool   // a link has our device's name and is not ours
	ForeignVXLAN  bool   // the same of our vxlan device
	Links         []Link // all of the host's
	Networks      []Network
	Host          netcfg.Facts
	Ports         []Port
	Filters       []filter.Table
	CNI           CNI
	K3s           k3s.Settings
	Unit          Unit
	Written       []Directory
	Overlay       []netip.Addr // this node's, if the daemon was asked
	ClockRead     bool
	ClockSynced   bool
	Reach         []Reach

	Unread []Unread
}

// Unread is something that could not be looked at.
type Unread struct {
	What string
	Err  error
}

// State is what there is of the state directory.
type State struct {
	Path      string
	MachineID bool // the machine has one
	Read      bool // what is there could be looked at
	Seen      state.Seen
	Err       error // why what is there can't be used
	WriteErr  error // why nothing can be written there
	Free      int64 // bytes; -1 if not known
}

// Kernel is what the kernel and the programs that speak to it can do.
type Kernel struct {
	WireGuard    bool
	TUN          bool
	NFT          bool  // the program nft is there
	FirewallErr  error // why the kernel or nft don't take our rules; nil also if they were not tried
	BridgeFilter bool  // br_netfilter is there or can be loaded
	IPv6         bool  // IPv6 is there, and links that are made get it
}

// Link is a network device.
type Link struct {
	Name string
	Kind string

	index int
}

// Network is one that this host has an address in, or a route to.
type Network struct {
	Prefix netip.Prefix // with the host's own address, if it has one
	Link   string
	Own    bool // the host has an address in it
}

// Port is one that meshd listens on.
type Port struct {
	Network string // udp | tcp
	Address string // as configured; "" for all
	Port    uint16
	Key     string // of the configuration
	State   PortState
	Holder  string // "name (pid 1)" of who has it; "" if not known
	Ours    bool   // the daemon or the kernel's device of ours has it
}

// PortState says whether a port can be listened on.
type PortState string

// The states of a port.
const (
	PortFree    PortState = "free"
	PortTaken   PortState = "taken"
	PortForeign PortState = "foreign" // the address is not this host's
)

// CNI is what there is of the pods' network.
type CNI struct {
	Config     cni.Config
	Status     cni.Status
	Read       bool
	Unwritable []string // directories that have to be written to and can't be
}

// Reach is a host that meshd will speak to, or under whose name it will be
// spoken to.
type Reach struct {
	Key        string // of the configuration
	Host       string
	Port       uint16 // TCP; 0 for one that is only to be resolved
	ResolveErr error
	DialErr    error
}
