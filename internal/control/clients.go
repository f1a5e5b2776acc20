// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"time"

	"github.com/meshd/meshd/internal/mesh"
)

// ClientRequest asks the daemon to add a client. The private key is not sent.
type ClientRequest struct {
	Name           string   `json:"name"`
	PublicKey      string   `json:"publicKey"`      // base64
	PresharedKey   string   `json:"presharedKey"`   // base64; "" for none
	Access         []string `json:"access"`         // as mesh.ParseAccess takes them, at least one
	ServiceGateway string   `json:"serviceGateway"` // a node's name or fingerprint; "" for any
	Networks       []string `json:"networks"`       // behind it
	Offers         []string `json:"offers"`         // what may be reached there, as mesh.ParseAccess takes it; none for everything
	Endpoint       string   `json:"endpoint"`       // host:port at which it waits for nodes; "" for a client that speaks first
	Cluster        string   `json:"cluster"`        // name of another cluster, whose ranges Networks are; "" for none
	NoInternalIPs  bool     `json:"noInternalIPs"`  // leave the nodes' internal IPs out of its configuration
}

// ClientConfig is a client's configuration without its secrets. Clients of other versions read it in JSON.
type ClientConfig struct {
	Cluster      string       `json:"cluster"`
	ID           mesh.ID      `json:"id"`
	Name         string       `json:"name"`
	PublicKey    string       `json:"publicKey"`    // base64
	PresharedKey bool         `json:"presharedKey"` // it has one
	Overlay      []netip.Addr `json:"overlay"`
	Access       []string     `json:"access"`
	Unserved     []string     `json:"unserved"` // the entries of Access that no node routes to
	// Ranges contain everything that the client may reach. Later configurations can't go
	// beyond them.
	Ranges    []netip.Prefix `json:"ranges"`
	Resolver  string         `json:"resolver"` // address; "" if it may not use the cluster's
	Search    []string       `json:"search"`   // domains
	MTU       int            `json:"mtu"`
	Keepalive int            `json:"keepalive"` // seconds
	Networks  []netip.Prefix `json:"networks"`  // behind it
	// ListenPort is where it waits for nodes, 0 for a client that speaks first.
	ListenPort int          `json:"listenPort"`
	Peers      []ClientPeer `json:"peers"`    // by name
	Standbys   []ClientPeer `json:"standbys"` // nodes that take over when a peer dies; those next in line come first
}

// ClientPeer is a node to which a client has a tunnel.
type ClientPeer struct {
	ID             mesh.ID        `json:"id"`
	Name           string         `json:"name"`
	PublicKey      string         `json:"publicKey"` // base64
	Overlay        netip.Addr     `json:"overlay"`   // its first overlay address
	Endpoint       string         `json:"endpoint"`  // host:port
	AllowedIPs     []netip.Prefix `json:"allowedIPs"`
	ServiceGateway bool           `json:"serviceGateway"` // Services go through it
}

// IsExit reports whether the client reaches the internet through the node, in one family at least.
func (p ClientPeer) IsExit() bool { return slices.ContainsFunc(p.AllowedIPs, mesh.IsDefaultRoute) }

// ClientStatus is a client as this node sees it.
type ClientStatus struct {
	ID             mesh.ID        `json:"id"`
	Name           string         `json:"name"`
	Overlay        []netip.Addr   `json:"overlay"`
	Access         []string       `json:"access"`
	AddedBy        string         `json:"addedBy"`        // a node's name, or its fingerprint if it is gone
	Added          time.Time      `json:"added"`          // UTC
	ServiceGateway string         `json:"serviceGateway"` // a node's name; "" for any
	PresharedKey   bool           `json:"presharedKey"`   // it has one
	Networks       []netip.Prefix `json:"networks"`       // behind it
	Offers         []string       `json:"offers"`         // what may be reached there; empty for everything
	Cluster        string         `json:"cluster"`        // name of another cluster, whose ranges Networks are; "" for none
	NoInternalIPs  bool           `json:"noInternalIPs"`  // the nodes' internal IPs are not in its configuration
	// The rest is about its tunnel to this node; zero if it has none.
	Endpoint      netip.AddrPort `json:"endpoint"`               // source of its last packet; "" for none
	LastHandshake time.Time      `json:"lastHandshake,omitzero"` // UTC; absent for never
	Received      int64          `json:"receivedBytes"`
	Sent          int64          `json:"sentBytes"`
}

// RemovedClient is a client that was removed.
type RemovedClient struct {
	ID   mesh.ID `json:"id"`
	Name string  `json:"name"`
}

// AddClient asks the daemon to add a client, and returns its configuration.
func (c *Client) AddClient(ctx context.Context, r ClientRequest) (ClientConfig, error) {
	body, err := json.Marshal(r)
	if err != nil {
		return ClientConfig{}, fmt.Errorf("make request: %w", err)
	}
	var config ClientConfig
	return config, c.send(ctx, http.MethodPost, "/v1/clients/add", body, &config)
}

// ClientConfig returns the current configuration of a client.
func (c *Client) ClientConfig(ctx context.Context, client string) (ClientConfig, error) {
	var config ClientConfig
	return config, c.do(ctx, http.MethodGet, "/v1/clients?"+url.Values{"client": {client}}.Encode(), &config)
}

// RemoveClient asks the daemon to remove a client, named by its name or its ID.
func (c *Client) RemoveClient(ctx context.Context, client string) (RemovedClient, error) {
	var r RemovedClient
	return r, c.do(ctx, http.MethodPost, "/v1/clients/remove?"+url.Values{"client": {client}}.Encode(), &r)
}

// maxRequest is far above the size of any request, in bytes.
const maxRequest = 64 << 10

// handleClients adds the handlers for clients.
func handleClients(mux *http.ServeMux, d Daemon) {
	mux.HandleFunc("POST /v1/clients/add", func(w http.ResponseWriter, r *http.Request) {
		var request ClientRequest
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequest)).Decode(&request); err != nil {
			reply(w, ClientConfig{}, fmt.Errorf("%w: the request can't be read: %w", ErrRefused, err))
			return
		}
		config, err := d.AddClient(r.Context(), request)
		reply(w, config, err)
	})
	mux.HandleFunc("GET /v1/clients", func(w http.ResponseWriter, r *http.Request) {
		config, err := d.ClientConfig(r.URL.Query().Get("client"))
		reply(w, config, err)
	})
	mux.HandleFunc("POST /v1/clients/remove", func(w http.ResponseWriter, r *http.Request) {
		removed, err := d.RemoveClient(r.Context(), r.URL.Query().Get("client"))
		reply(w, removed, err)
	})
}
