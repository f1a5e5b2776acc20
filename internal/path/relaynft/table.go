// SPDX-License-Identifier: Apache-2.0

package relaynft

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	mdlayher "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
	"sigs.k8s.io/knftables"

	"github.com/meshd/meshd/internal/path/forward"
)

// batch is how many sessions are written in one message: the list of them may have 64 KiB.
const batch = 256

// keyLengths are those of a session's key in the map of its family: each field fills registers of
// four bytes.
const (
	keyLength4 = 4 + 4 + 4 + 4
	keyLength6 = 16 + 16 + 4 + 4
)

// table is the one of the kernel, in the network namespace of the process.
type table struct {
	conn *nftables.Conn
	nft  knftables.Interface // opened on first use
}

func openTable() (*table, error) {
	conn, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return nil, fmt.Errorf("open nftables netlink: %w", err)
	}
	return &table{conn: conn}, nil
}

func (t *table) Close() error { return t.conn.CloseLasting() }

func (t *table) writer() (knftables.Interface, error) {
	if t.nft == nil {
		nft, err := knftables.New(knftables.NetDevFamily, forward.TableName)
		if errors.Is(err, exec.ErrNotFound) {
			return nil, fmt.Errorf("nft is not installed (`apt install nftables`): %w", err)
		}
		if err != nil {
			return nil, err
		}
		t.nft = nft
	}
	return t.nft, nil
}

// find returns our table, nil if there is none. One that somebody has disabled (flags dormant) is
// returned, too.
func (t *table) find() (*nftables.Table, error) {
	all, err := t.conn.ListTablesOfFamily(nftables.TableFamilyNetdev)
	if err != nil {
		return nil, fmt.Errorf("list nft tables: %w", err)
	}
	i := slices.IndexFunc(all, func(t *nftables.Table) bool { return t.Name == forward.TableName })
	if i < 0 {
		return nil, nil
	}
	return all[i], nil
}

// read returns what is in the table, nothing if there is no table. Whole is whether the table has
// the maps and counters, and is not disabled: else it has to be made anew.
func (t *table) read() (have forward.Table, whole bool, err error) {
	own, err := t.find()
	if err != nil || own == nil {
		return forward.Table{}, false, err
	}
	counters, err := t.counters(own)
	if err != nil {
		return forward.Table{}, false, err
	}
	if have.Chains, err = t.chains(own); err != nil {
		return forward.Table{}, false, err
	}
	maps := 0
	sets, err := t.conn.GetSets(own)
	if err != nil {
		return forward.Table{}, false, fmt.Errorf("list nft maps: %w", err)
	}
	for _, s := range sets {
		if s.Name != forward.Sessions4 && s.Name != forward.Sessions6 {
			continue
		}
		maps++
		elements, err := t.conn.GetSetElements(s)
		if err != nil {
			return forward.Table{}, false, fmt.Errorf("list elements of nft map %s: %w", s.Name, err)
		}
		now := time.Now()
		for _, e := range elements {
			if s, ok := toSession(e, now); ok {
				have.Sessions = append(have.Sessions, s)
			}
		}
	}
	slices.SortFunc(have.Sessions, forward.Session.Compare)
	return have, maps == 2 && len(counters) >= 3 && own.Flags == 0, nil
}

func (t *table) chains(own *nftables.Table) ([]forward.Chain, error) {
	all, err := t.conn.ListChainsOfTableFamily(own.Family)
	if err != nil {
		return nil, fmt.Errorf("list nft chains: %w", err)
	}
	var out []forward.Chain
	for _, c := range all {
		if c.Table.Name != own.Name {
			continue
		}
		rules, err := t.conn.GetRules(own, c)
		if err != nil {
			return nil, fmt.Errorf("list rules of nft chain %s: %w", c.Name, err)
		}
		chain := forward.Chain{Name: c.Name}
		for _, r := range rules {
			hash, _ := userdata.GetString(r.UserData, userdata.TypeComment)
			chain.Rules = append(chain.Rules, forward.Rule{Hash: hash})
		}
		out = append(out, chain)
	}
	return out, nil
}

// counters returns those of the table, by name.
func (t *table) counters(own *nftables.Table) (map[string]forward.Counter, error) {
	all, err := t.conn.GetNamedObjects(own)
	if err != nil {
		return nil, fmt.Errorf("list nft counters: %w", err)
	}
	out := make(map[string]forward.Counter)
	for _, o := range all {
		named, ok := o.(*nftables.NamedObj)
		if !ok || named.Type != nftables.ObjTypeCounter {
			continue
		}
		if c, ok := named.Obj.(*expr.Counter); ok {
			out[named.Name] = forward.Counter{Packets: c.Packets, Bytes: c.Bytes}
		}
	}
	return out, nil
}

// count returns what the counters say, zero if there is no table.
func (t *table) count() (forward.Counts, error) {
	own, err := t.find()
	if err != nil || own == nil {
		return forward.Counts{}, err
	}
	all, err := t.counters(own)
	return forward.Count(all), err
}

// apply carries out a change. A table that is not whole is made anew. After an error the table has to
// be read again.
func (t *table) apply(ctx context.Context, c forward.Change, whole bool) error {
	if len(c.Chains) > 0 || !whole {
		if err := t.applyChains(ctx, c, whole); err != nil {
			return err
		}
	}
	if err := t.applySessions(c); err != nil {
		return err
	}
	return t.removeChains(c.Obsolete)
}

// applyChains writes chains in one transaction. A chain has to be there before another one jumps
// to it.
func (t *table) applyChains(ctx context.Context, c forward.Change, whole bool) error {
	nft, err := t.writer()
	if err != nil {
		return fmt.Errorf("write nft table netdev %s: %w", forward.TableName, err)
	}
	tx := nft.NewTransaction()
	tx.Add(&knftables.Table{})
	if !whole {
		tx.Delete(&knftables.Table{})
		tx.Add(&knftables.Table{})
		addObjects(tx)
	}
	for _, chain := range c.Chains {
		if slices.Contains(c.New, chain.Name) {
			tx.Add(newChain(chain))
		}
	}
	for _, chain := range c.Chains {
		if !slices.Contains(c.New, chain.Name) {
			tx.Flush(&knftables.Chain{Name: chain.Name})
		}
		for _, r := range chain.Rules {
			tx.Add(&knftables.Rule{Chain: chain.Name, Rule: r.Text, Comment: &r.Hash})
		}
	}
	if err := nft.Run(ctx, tx); err != nil {
		return fmt.Errorf("write nft table netdev %s: %w", forward.TableName, err)
	}
	return nil
}

// addObjects adds maps and counters.
func addObjects(tx *knftables.Transaction) {
	for name, ip := range map[string]string{forward.Sessions4: "ip", forward.Sessions6: "ip6"} {
		size := uint64(forward.MaxSessions)
		tx.Add(&knftables.Map{
			Name: name, TypeOf: fmt.Sprintf("%[1]s daddr . %[1]s saddr . udp sport . @th,96,32 : verdict", ip),
			Flags: []knftables.SetFlag{knftables.TimeoutFlag}, Size: &size,
		})
	}
	for _, name := range []string{forward.Forwarded4, forward.Forwarded6, forward.Limited} {
		tx.Add(&knftables.Counter{Name: name})
	}
}

func newChain(c forward.Chain) *knftables.Chain {
	if c.Link == "" {
		return &knftables.Chain{Name: c.Name}
	}
	return &knftables.Chain{
		Name: c.Name, Device: &c.Link,
		Type:     knftables.PtrTo(knftables.FilterType),
		Hook:     knftables.PtrTo(knftables.IngressHook),
		Priority: knftables.PtrTo(knftables.BaseChainPriority(strconv.Itoa(forward.Priority))),
	}
}

// applySessions writes sessions. What is replaced is in one transaction.
func (t *table) applySessions(c forward.Change) error {
	added := make(map[string]forward.Session, len(c.Add))
	for _, s := range c.Add {
		added[string(key(s))] = s
	}
	for some := range slices.Chunk(c.Remove, batch) {
		var replaced []forward.Session
		for _, s := range some {
			if s, ok := added[string(key(s))]; ok {
				replaced = append(replaced, s)
				delete(added, string(key(s)))
			}
		}
		if err := t.writeSessions(some, replaced); err != nil {
			return err
		}
	}
	var rest []forward.Session
	for _, s := range c.Add {
		if _, ok := added[string(key(s))]; ok {
			rest = append(rest, s)
		}
	}
	for some := range slices.Chunk(rest, batch) {
		if err := t.writeSessions(nil, some); err != nil {
			return err
		}
	}
	return nil
}

// writeSessions removes and adds sessions in one transaction.
func (t *table) writeSessions(remove, add []forward.Session) error {
	own := &nftables.Table{Name: forward.TableName, Family: nftables.TableFamilyNetdev}
	now := time.Now()
	for name, is4 := range map[string]bool{forward.Sessions4: true, forward.Sessions6: false} {
		set := &nftables.Set{Table: own, Name: name, IsMap: true, HasTimeout: true}
		var gone, fresh []nftables.SetElement
		for _, s := range remove {
			if s.Is4() == is4 {
				gone = append(gone, toElement(s, now))
			}
		}
		for _, s := range add {
			if s.Is4() == is4 {
				fresh = append(fresh, toElement(s, now))
			}
		}
		if len(gone) > 0 {
			if err := t.conn.SetDeleteElements(set, gone); err != nil {
				return fmt.Errorf("remove sessions: %w", err)
			}
		}
		if len(fresh) > 0 {
			if err := t.conn.SetAddElements(set, fresh); err != nil {
				return fmt.Errorf("add sessions: %w", err)
			}
		}
	}
	if err := t.conn.Flush(); err != nil {
		return fmt.Errorf("write %d sessions to nft table netdev %s: %w", len(remove)+len(add), forward.TableName, err)
	}
	return nil
}

// removeChains removes chains. One to which a session has led that has ended stays busy until the
// kernel has cleared that away, within a second or so. It is removed the next time.
func (t *table) removeChains(names []string) error {
	own := &nftables.Table{Name: forward.TableName, Family: nftables.TableFamilyNetdev}
	for _, name := range names {
		c := &nftables.Chain{Table: own, Name: name}
		t.conn.FlushChain(c)
		t.conn.DelChain(c)
		if err := t.conn.Flush(); err != nil && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("remove nft chain %s: %w", name, err)
		}
	}
	return nil
}

// remove removes the table, and reports whether there was one.
func (t *table) remove() (bool, error) {
	own, err := t.find()
	if err != nil || own == nil {
		return false, err
	}
	t.conn.DelTable(own)
	if err := t.conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return false, fmt.Errorf("remove nft table netdev %s: %w", forward.TableName, err)
	}
	return true, nil
}

// key returns the key of a session in its map: addresses, port and index as packets have them. WireGuard's
// index is little-endian.
func key(s forward.Session) []byte {
	k := append(s.Local.AsSlice(), s.From.Addr().AsSlice()...)
	k = binary.BigEndian.AppendUint16(k, s.From.Port())
	return binary.LittleEndian.AppendUint32(append(k, 0, 0), s.Index)
}

// toElement returns the element for a session. One without timeout would stay for ever.
func toElement(s forward.Session, now time.Time) nftables.SetElement {
	return nftables.SetElement{
		Key: key(s), Timeout: max(s.Until.Sub(now), time.Millisecond),
		VerdictData: &expr.Verdict{Kind: expr.VerdictGoto, Chain: s.Chain},
	}
}

// toSession is the reverse. It returns false for what can't be ours.
func toSession(e nftables.SetElement, now time.Time) (forward.Session, bool) {
	length := len(e.Key) - 8
	if len(e.Key) != keyLength4 && len(e.Key) != keyLength6 {
		return forward.Session{}, false
	}
	local, _ := netip.AddrFromSlice(e.Key[:length/2])
	from, _ := netip.AddrFromSlice(e.Key[length/2 : length])
	rest := e.Key[length:]
	return forward.Session{
		Local: local, From: netip.AddrPortFrom(from, binary.BigEndian.Uint16(rest)),
		Index: binary.LittleEndian.Uint32(rest[4:]), Chain: chainOf(e.Val), Until: now.Add(e.Expires),
	}, true
}

// chainOf returns the chain of a verdict, "" if it names none.
func chainOf(verdict []byte) string {
	ad, err := mdlayher.NewAttributeDecoder(verdict)
	if err != nil {
		return ""
	}
	for ad.Next() {
		if ad.Type() == unix.NFTA_VERDICT_CHAIN {
			return strings.TrimRight(ad.String(), "\x00")
		}
	}
	return ""
}
