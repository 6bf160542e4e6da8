// nvinfer.cpp - what TensorRT's Python bindings need of its libraries to be imported and to
// register plugins. The registry keeps creators as the real one does and reads them as the ONNX
// parser does, through their vtable. Only names and order of the virtual functions are TensorRT's;
// MAJOR says of which version.

#include <cstring>
#include <string>
#include <vector>

struct Field {
  const char* name;
  const void* data;
  int type;
  int length;
};

struct Fields {
  int count;
  const Field* fields;
};

struct InterfaceInfo {
  const char* kind;
  int major, minor;
};

struct Creator {
  virtual int getAPILanguage() const = 0;
  virtual InterfaceInfo getInterfaceInfo() const = 0;
  virtual ~Creator() = default;
  virtual void* createPlugin(const char*, const char*, const Fields*, int, int) = 0;
  virtual const Fields* getFieldNames() = 0;
  virtual const char* getPluginName() const = 0;
  virtual const char* getPluginVersion() const = 0;
  virtual const char* getPluginNamespace() const = 0;
};

struct Registry {
#if MAJOR == 10
  virtual bool registerCreatorV2(Creator&, const char*) { return false; }
  virtual Creator* const* getPluginCreatorList(int*) const { return nullptr; }
  virtual Creator* getPluginCreator(const char*, const char*, const char*) { return nullptr; }
#endif
  virtual ~Registry() = default;
  virtual void setErrorRecorder(void*) {}
  virtual void* getErrorRecorder() const { return nullptr; }
#if MAJOR == 10
  virtual bool deregisterCreatorV2(const Creator&) { return false; }
#endif
  virtual bool isParentSearchEnabled() const { return false; }
  virtual void setParentSearchEnabled(bool) {}
  virtual void* loadLibrary(const char*) { return nullptr; }
  virtual void deregisterLibrary(void*) {}
  virtual bool registerCreator(Creator& creator, const char* space) {
    registrations++;
    if (getCreator(creator.getPluginName(), creator.getPluginVersion(), space)) return false;
    creators.push_back(&creator);
    return true;
  }
  virtual Creator* const* getAllCreators(int* count) const {
    *count = static_cast<int>(creators.size());
    return creators.data();
  }
  virtual Creator* getCreator(const char* name, const char* version, const char* space) {
    for (Creator* creator : creators) {
      if (!std::strcmp(creator->getPluginName(), name) &&
          !std::strcmp(creator->getPluginVersion(), version) &&
          !std::strcmp(creator->getPluginNamespace(), space))
        return creator;
    }
    return nullptr;
  }

  std::vector<Creator*> creators;
  int registrations = 0;
};

static Registry registry;

extern "C" {
void* getPluginRegistry() { return &registry; }
void* getBuilderPluginRegistry(int) { return &registry; }
bool initLibNvInferPlugins(void*, const char*) { return true; }
int getNvOnnxParserVersion() { return 0; }
void* createInferBuilder_INTERNAL(void*, int) { return nullptr; }
void* createInferRefitter_INTERNAL(void*, void*, int) { return nullptr; }
void* createInferRuntime_INTERNAL(void*, int) { return nullptr; }
void* createNvOnnxParser_INTERNAL(void*, void*, int) { return nullptr; }
void* createNvOnnxParserRefitter_INTERNAL(void*, void*, int) { return nullptr; }

int stub_registrations() { return registry.registrations; }

// One line per creator: kind namespace::name/version field=type ...
const char* stub_creators() {
  static std::string text;
  text.clear();
  for (Creator* creator : registry.creators) {
    text += std::string(creator->getInterfaceInfo().kind) + ": " + creator->getPluginNamespace() +
            "::" + creator->getPluginName() + "/" + creator->getPluginVersion();
    const Fields* names = creator->getFieldNames();
    for (int i = 0; i < names->count; i++) {
      const Field& field = names->fields[i];
      text += std::string(" ") + field.name + "=" + std::to_string(field.type);
    }
    text += "\n";
  }
  return text.c_str();
}
}
