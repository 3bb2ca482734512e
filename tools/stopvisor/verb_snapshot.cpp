// SPDX-License-Identifier: Apache-2.0
// snapshot: a VM on disk. `create` is done in the VM's process; what is on disk is looked at here.
#include <array>
#include <csignal>
#include <memory>

#include <nlohmann/json.hpp>

#include "tools/client/client.h"
#include "tools/snapshot/chain_edit.h"
#include "tools/stopvisor/documents.h"
#include "tools/stopvisor/job_watch.h"
#include "tools/stopvisor/long_work.h"
#include "tools/stopvisor/output.h"
#include "tools/stopvisor/verb.h"
#include "vmm/control/fields.h"
#include "vmm/did_you_mean.h"

namespace stopvisor::tools {
namespace {

using Json = nlohmann::ordered_json;
using vmm::Error;
using vmm::Status;

Json chain_of(const snapshot::Chain& chain) {
  Json list = Json::array();
  for (const snapshot::Snapshot& member : chain.members())
    list.push_back(member.directory());
  return list;
}

std::string when(uint64_t unix_ns) {
  const auto seconds = static_cast<time_t>(unix_ns / 1'000'000'000);
  tm parts{};
  std::array<char, 32> text{};
  if (::gmtime_r(&seconds, &parts) == nullptr || std::strftime(text.data(), text.size(), "%F %T UTC", &parts) == 0)
    return "?";
  return text.data();
}

std::string names(const snapshot::Names& list) {
  std::string text;
  for (const auto& [name, value] : list)
    text.append(text.empty() ? "" : ", ").append(name).append(" ").append(value);
  return text.empty() ? "none" : text;
}

std::string disk_line(size_t number, const snapshot::Disk& disk) {
  return "disk " + std::to_string(number) + ":   " + human_size(disk.bytes) + ", " + disk.path +
         (disk.read_only ? ", read-only" : "") +
         (disk.index ? ": its image is here" : ": its image is not here, but there") + "\n";
}

class SnapshotVerb final : public Verb {
public:
  const char* name() const noexcept override { return "snapshot"; }
  const char* summary() const noexcept override { return "Put a VM on disk, and look at what is there"; }
  const char* details() const noexcept override {
    return "ACTION and what it takes:\n"
           "  create VM DIR          hold the guest, and write its memory and state to DIR, a new directory\n"
           "  info DIR               what it is of, and what it stands on\n"
           "  verify DIR             check every byte of it, and of all it stands on\n"
           "  chain merge DIR TO     write TO, the same without parents\n"
           "  chain rebase DIR BASE TO  write TO, the same with what differs from BASE\n"
           "  chain prune DIR        make DIR full in its place, and remove the parents nobody else needs\n\n"
           "'run --restore DIR' starts what is in a snapshot. After 'create' the guest goes on as before: held "
           "where it\n"
           "was held. Ctrl-C calls it off, and the VM is as it was. With --key everything is sealed with the "
           "key in\n"
           "FILE (32 bytes, or 64 hexadecimal digits), and whoever can write DIR cannot change the guest. With "
           "--disks\n"
           "what is on the guest's disks is as of the same moment; else the images have to stay as they are.\n\n"
           "Examples:\n"
           "  stopvisor snapshot create vm1 /var/lib/vms/monday\n"
           "  stopvisor snapshot create vm1 monday --compress --key vms.key --keep-held\n"
           "  stopvisor snapshot create vm1 tuesday --parent monday\n"
           "  stopvisor snapshot create vm1 wednesday --live\n"
           "  stopvisor snapshot verify monday --key vms.key\n"
           "  stopvisor run --restore monday --key vms.key --name vm2 --detach";
  }
  void declare(Arguments& arguments) override {
    arguments.positional("ACTION", action_, "create, info, verify or chain");
    arguments.rest("ARGUMENTS", words_, 1, "What the action takes, see below");
    arguments.flag("--live", live_, "create: hold the guest for an instant only, and write while it goes on");
    arguments.option("--parent", parent_, "DIR",
                     "create: write only what is not as in this snapshot, which is kept");
    arguments.flag("--compress", compress_, "create, chain merge, chain rebase: compress memory (zstd)");
    arguments.option("--key", key_, "FILE", "Seal what is written, and check what is read, with this key");
    arguments.option("--expect-id", expect_id_, "ID", "verify: only this snapshot, as 'info' shows its id");
    arguments.flag("--disks", disks_, "create: with the images of the disks that the guest can write");
    arguments.flag("--resume", resume_, "create: let the guest go afterwards, as 'resume' does");
    arguments.flag("--keep-held", keep_held_, "create: leave the guest held, as 'pause' does");
    arguments.option("--timeout", timeout_, "DURATION",
                     "create: give up, with status 4, where the guest does not stop for so long (default 5s)");
  }
  std::expected<int, Error> run(bool json) override {
    if (action_ == "chain") {
      action_ += " " + words_.front();
      words_.erase(words_.begin());
    }
    for (const Action& action : kActions)
      if (action_ == action.name)
        return run_action(action, json);
    std::vector<std::string> known;
    known.reserve(kActions.size());
    for (const Action& action : kActions)
      known.emplace_back(action.name);
    const std::string meant = vmm::did_you_mean(action_, known);
    return std::unexpected(Error{
        name(), action_,
        "no such action; " + (meant.empty() ? "see 'stopvisor snapshot --help'" : "did you mean '" + meant + "'?"),
        Status::kUsage});
  }

private:
  struct Action {
    const char* name;
    const char* takes;
    size_t words;
    bool writes; // a new snapshot
    std::expected<int, Error> (SnapshotVerb::*run)(bool json);
  };
  static const std::array<Action, 6> kActions;

  [[nodiscard]] std::string operation() const { return "snapshot " + action_.substr(0, 60); }
  [[nodiscard]] Error usage(std::string object, std::string reason) const {
    return {operation(), std::move(object), std::move(reason), Status::kUsage};
  }

  std::expected<int, Error> run_action(const Action& action, bool json) {
    operation_ = operation();
    if (words_.size() != action.words)
      return std::unexpected(usage("", std::string("takes ") + action.takes));
    if (action_ != "create" && (live_ || disks_ || resume_ || keep_held_ || timeout_))
      return std::unexpected(
          usage("", "--live, --disks, --resume, --keep-held and --timeout are for 'snapshot create'"));
    if (live_ && keep_held_)
      return std::unexpected(usage("", "--live and --keep-held exclude each other: a guest that goes on while its "
                                       "memory is written cannot be kept held"));
    if (parent_ && action_ != "create")
      return std::unexpected(usage("--parent", "is for 'snapshot create'; see also 'snapshot chain rebase'"));
    if (expect_id_ && action_ != "verify")
      return std::unexpected(usage("--expect-id", "is for 'snapshot verify' and 'run --restore'"));
    if (resume_ && keep_held_)
      return std::unexpected(usage("", "--resume and --keep-held exclude each other"));
    if (compress_ && !action.writes)
      return std::unexpected(usage("--compress", "is for create, chain merge and chain rebase"));
    return (this->*action.run)(json);
  }

  // Null where none is asked for.
  std::expected<std::unique_ptr<const snapshot::Key>, Error> read_key() const {
    if (!key_)
      return nullptr;
    const auto key = snapshot::Key::read(operation_, *key_);
    if (!key)
      return std::unexpected(key.error());
    return std::make_unique<const snapshot::Key>(*key);
  }

  std::expected<int, Error> create(bool json) {
    const auto timeout = parse_timeout(operation_, timeout_, std::chrono::seconds(5));
    if (!timeout)
      return std::unexpected(timeout.error());
    const auto key = read_key();
    if (!key)
      return std::unexpected(key.error());
    Json body = {
        {"directory", absolute_path(words_[1])}, {"compress", compress_}, {"timeout_ms", timeout->count()}};
    if (live_)
      body["live"] = true;
    if (parent_)
      body["parent"] = absolute_path(*parent_);
    if (*key)
      body["key"] = snapshot::hex_text((*key)->bytes());
    if (disks_)
      body["disks"] = true;
    if (resume_ || keep_held_)
      body["afterwards"] = resume_ ? "resume" : "keep-held";
    auto client = Client::connect(operation_, words_[0]);
    if (!client)
      return std::unexpected(client.error());
    const auto result =
        run_job(*client, operation_, "/v1/snapshot", body.dump(-1, ' ', false, Json::error_handler_t::replace));
    if (!result)
      return std::unexpected(result.error());
    return show_created(*result, json);
  }

  std::expected<int, Error> show_created(const std::string& result, bool json) const {
    if (json) {
      print_vm_document(words_[0], result);
      return 0;
    }
    try {
      const Json made = Json::parse(result);
      const uint64_t pages = made.at("data_pages").get<uint64_t>();
      const std::chrono::microseconds held{made.at("held_us").get<int64_t>()};
      print_text(made.at("directory").get<std::string>() + ": " + human_size(pages * snapshot::kPageBytes) +
                 " of memory" + (parent_ ? " that is not as in " + *parent_ : "") +
                 disks_text(made.at("disks").get<uint64_t>()) + (made.at("sealed").get<bool>() ? ", sealed" : "") +
                 "; the guest was held for " + human_duration(held) +
                 (made.at("held").get<bool>() ? ", and is held" : "") + waits_of(made) + "\n");
    } catch (const Json::exception&) {
      return std::unexpected(strange_answer(operation_, words_[0]));
    }
    return 0;
  }

  static std::string disks_text(uint64_t disks) {
    return disks == 0 ? "" : disks == 1 ? ", 1 disk" : ", " + std::to_string(disks) + " disks";
  }

  // Of a guest that wrote faster than the disk could take.
  static std::string waits_of(const Json& made) {
    if (made.value("throttled", uint64_t{0}) == 0)
      return "";
    const std::chrono::microseconds time{made.at("throttled_us").get<int64_t>()};
    return "; its writes had to wait for the disk for " + human_duration(time);
  }

  std::expected<int, Error> info(bool json) {
    const auto key = read_key();
    if (!key)
      return std::unexpected(key.error());
    const auto chain =
        snapshot::Chain::open(words_[0], {.operation = operation_, .key = key->get(), .unchecked = !*key});
    if (!chain)
      return std::unexpected(chain.error());
    const snapshot::Manifest& manifest = chain->newest().manifest();
    if (json) {
      Json document = Json::parse(snapshot::write_manifest(manifest), nullptr, false);
      document["digest"] = snapshot::hex_text(chain->newest().digest());
      document["chain"] = chain_of(*chain);
      print_text(document.dump(2) + "\n");
      return 0;
    }
    uint64_t memory = 0;
    for (const snapshot::Region& region : manifest.regions)
      memory += region.bytes;
    std::string text = "id:       " + snapshot::hex_text(manifest.id) + "\nof:       " + manifest.vm +
                       "\nmade:     " + when(manifest.created_unix_ns) +
                       "\nkind:     " + (manifest.parent ? "incremental" : "full") +
                       (manifest.encoding == snapshot::Encoding::kZstd ? ", compressed" : "") +
                       (manifest.sealed ? *key ? ", sealed" : ", sealed (not checked: no --key)" : "") +
                       "\nmemory:   " + human_size(memory) + ", " +
                       human_size(manifest.data_pages * snapshot::kPageBytes) + " of it not zero here" +
                       "\nfile:     " + human_size(manifest.file_bytes) + "\npatches:  " + names(manifest.patches) +
                       "\nhost:     " + names(manifest.host) + "\n";
    for (size_t number = 0; number < manifest.disks.size(); ++number)
      text += disk_line(number, manifest.disks[number]);
    for (size_t parent = 1; parent < chain->members().size(); ++parent)
      text += "on:       " + chain->members()[parent].directory() + "\n";
    print_text(text);
    return 0;
  }

  std::expected<int, Error> verify(bool json) {
    const auto key = read_key();
    if (!key)
      return std::unexpected(key.error());
    snapshot::OpenOptions options{.operation = operation_, .key = key->get()};
    if (expect_id_) {
      const auto id = snapshot::parse_id(operation_ + ": --expect-id", *expect_id_);
      if (!id)
        return std::unexpected(id.error());
      options.expected = *id;
    }
    const auto chain = snapshot::Chain::open(words_[0], options);
    if (!chain)
      return std::unexpected(chain.error());
    if (auto good = do_long_work(operation_,
                                 [&](const LongWork& work) {
                                   return chain->verify({operation_, words_[0], 0, work.stop}, &work.progress);
                                 });
        !good)
      return std::unexpected(good.error());
    if (json)
      print_text(
          Json{{"directory", words_[0]}, {"good", true}, {"sealed", *key != nullptr}, {"chain", chain_of(*chain)}}
              .dump(2, ' ', false, Json::error_handler_t::replace) +
          "\n");
    else
      print_text(words_[0] + ": good" + (*key ? ", and sealed with this key" : "") + "\n");
    return 0;
  }

  std::expected<int, Error> merge(bool json) {
    return edit(json, words_[1], [&](const snapshot::EditOptions& options) {
      return snapshot::merge(words_[0], words_[1], options);
    });
  }
  std::expected<int, Error> rebase(bool json) {
    return edit(json, words_[2], [&](const snapshot::EditOptions& options) {
      return snapshot::rebase(words_[0], words_[1], words_[2], options);
    });
  }

  // What it takes long to make out of a chain: `what` with the options to do it with. RETURNS: what that does.
  template <class What>
  auto edited(What&& what) -> decltype(what(std::declval<const snapshot::EditOptions&>())) {
    const auto key = read_key();
    if (!key)
      return std::unexpected(key.error());
    decltype(what(std::declval<const snapshot::EditOptions&>())) made;
    const auto done = do_long_work(operation_, [&](const LongWork& work) -> std::expected<void, Error> {
      made = what(edit_options(key->get(), work));
      if (!made)
        return std::unexpected(made.error());
      return {};
    });
    if (!done)
      return std::unexpected(done.error());
    return made;
  }

  template <class What>
  std::expected<int, Error> edit(bool json, const std::string& to, What&& what) {
    const auto made = edited(what);
    if (!made)
      return std::unexpected(made.error());
    const uint64_t bytes = made->manifest.data_pages * snapshot::kPageBytes;
    if (json)
      print_text(Json{{"directory", to}, {"id", snapshot::hex_text(made->manifest.id)}, {"data_bytes", bytes}}.dump(
                     2, ' ', false, Json::error_handler_t::replace) +
                 "\n");
    else
      print_text(to + ": " + human_size(bytes) + " of memory\n");
    return 0;
  }

  std::expected<int, Error> prune(bool json) {
    const auto done =
        edited([&](const snapshot::EditOptions& options) { return snapshot::prune(words_[0], options); });
    if (!done)
      return std::unexpected(done.error());
    if (json) {
      print_text(Json{{"directory", words_[0]}, {"removed", done->removed}, {"kept", done->kept}}.dump(
                     2, ' ', false, Json::error_handler_t::replace) +
                 "\n");
      return 0;
    }
    std::string text = words_[0] + ": full\n";
    for (const std::string& directory : done->removed)
      text += directory + ": removed\n";
    for (const std::string& directory : done->kept)
      text += directory + ": kept, as others stand on it\n";
    print_text(text);
    return 0;
  }

  [[nodiscard]] snapshot::EditOptions edit_options(const snapshot::Key* key, const LongWork& work) const {
    snapshot::EditOptions options;
    options.open = {.operation = operation_, .key = key};
    options.write.operation = operation_;
    options.write.encoding = compress_ ? snapshot::Encoding::kZstd : snapshot::Encoding::kRaw;
    options.write.key = options.open.key;
    options.write.stop = work.stop;
    options.write.progress = &work.progress;
    return options;
  }

  std::string action_;
  std::string operation_; // outlives what is opened
  std::vector<std::string> words_;
  std::optional<std::string> key_, parent_, timeout_, expect_id_;
  bool compress_ = false;
  bool disks_ = false;
  bool live_ = false;
  bool resume_ = false;
  bool keep_held_ = false;
};

const std::array<SnapshotVerb::Action, 6> SnapshotVerb::kActions{{
    {"create", "VM DIR", 2, true, &SnapshotVerb::create},
    {"info", "DIR", 1, false, &SnapshotVerb::info},
    {"verify", "DIR", 1, false, &SnapshotVerb::verify},
    {"chain merge", "DIR TO", 2, true, &SnapshotVerb::merge},
    {"chain rebase", "DIR BASE TO", 3, true, &SnapshotVerb::rebase},
    {"chain prune", "DIR", 1, false, &SnapshotVerb::prune},
}};

} // namespace

std::unique_ptr<Verb> make_snapshot() {
  return std::make_unique<SnapshotVerb>();
}

} // namespace stopvisor::tools
